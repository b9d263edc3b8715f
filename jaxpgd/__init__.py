"""Policy-guided trajectory generation for offline reinforcement learning, in JAX.

The stages as functions: `load`, `prepare_windows`, `train_denoiser`, `make_synthesizer` and `synthesize`, `make_agent` and
`train_agent`, `evaluate`. The command line (`jaxpgd run`) chains the same functions.
"""

from jaxpgd.agents import make_agent
from jaxpgd.config import load_config
from jaxpgd.data import load
from jaxpgd.errors import InputError
from jaxpgd.evaluation.returns import evaluate
from jaxpgd.settings import Config
from jaxpgd.synthesis.diffusion import make_synthesizer, synthesize
from jaxpgd.training.agent import Experience, train_agent
from jaxpgd.training.denoiser import prepare_windows, train_denoiser
from jaxpgd.types import Agent, Policy, Trajectory, Transition

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "Config",
    "Experience",
    "InputError",
    "Policy",
    "Trajectory",
    "Transition",
    "evaluate",
    "load",
    "load_config",
    "make_agent",
    "make_synthesizer",
    "prepare_windows",
    "synthesize",
    "train_agent",
    "train_denoiser",
]
