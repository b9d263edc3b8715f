"""Policy-guided trajectory generation for offline reinforcement learning, in JAX.

The stages as functions: `load`, `prepare_windows`, `train_denoiser`, `make_synthesizer` and `synthesize`, `make_agent` and
`train_agent`, `evaluate`; for DyDiff and world models `prepare_dynamics`, `train_dynamics`, `train_state_denoiser`,
`make_dydiff`, `make_world_model_synthesizer` and `synthesize_from`. The command line (`jaxpgd run`) chains the same functions.
"""

from jaxpgd.agents import make_agent
from jaxpgd.datasets import load
from jaxpgd.errors import InputError
from jaxpgd.experiment.config import load_config
from jaxpgd.settings import Config
from jaxpgd.simulators.returns import evaluate
from jaxpgd.synthesis.diffusion import TrajectoryDenoiser, make_synthesizer, synthesize, synthesize_from
from jaxpgd.synthesis.dydiff import make_dydiff
from jaxpgd.synthesis.world_model import make_world_model_synthesizer
from jaxpgd.training.agent import Experience, train_agent
from jaxpgd.training.denoiser import prepare_windows, train_denoiser, train_state_denoiser
from jaxpgd.training.dynamics import prepare_dynamics, train_dynamics
from jaxpgd.types import Agent, Policy, Trajectory, Transition
from jaxpgd.world_model.termination import termination

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "Config",
    "Experience",
    "InputError",
    "Policy",
    "Trajectory",
    "TrajectoryDenoiser",
    "Transition",
    "evaluate",
    "load",
    "load_config",
    "make_agent",
    "make_dydiff",
    "make_synthesizer",
    "make_world_model_synthesizer",
    "prepare_dynamics",
    "prepare_windows",
    "synthesize",
    "synthesize_from",
    "termination",
    "train_agent",
    "train_denoiser",
    "train_dynamics",
    "train_state_denoiser",
]
