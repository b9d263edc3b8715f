"""Policy-guided trajectory generation for offline reinforcement learning, in JAX.

The stages of the method are functions: `load`, `prepare_windows`, `train_denoiser`, `make_synthesizer` and `synthesize`,
`make_agent` and `train_agent`, `evaluate`. World models and DyDiff add `prepare_transitions`, `train_world_model`,
`train_state_denoiser`, `train_behaviour`, `innovation_windows`, `make_dydiff`, `make_world_model_synthesizer` and
`synthesize_from`. The command line (`jaxpgd run`, `jaxpgd.experiment`) chains the same functions.

Names are imported on first use, so that `import jaxpgd` is fast and loads no file formats and no simulators.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxpgd.agents import make_agent
    from jaxpgd.dataset import Dataset, DatasetInfo
    from jaxpgd.datasets import load
    from jaxpgd.errors import InputError
    from jaxpgd.simulators.returns import evaluate
    from jaxpgd.synthesis.diffusion import TrajectoryDenoiser, make_synthesizer, synthesize, synthesize_from
    from jaxpgd.synthesis.dydiff import make_dydiff
    from jaxpgd.synthesis.world_model import make_world_model_synthesizer
    from jaxpgd.training.agent import train_agent
    from jaxpgd.training.behaviour import train_behaviour
    from jaxpgd.training.denoiser import train_denoiser
    from jaxpgd.training.experience import Experience
    from jaxpgd.training.innovation_windows import innovation_windows
    from jaxpgd.training.state_denoiser import train_state_denoiser
    from jaxpgd.training.windows import prepare_windows
    from jaxpgd.training.world_model import train_world_model
    from jaxpgd.types import Agent, Policy, Trajectory, Transition
    from jaxpgd.world_model.data import prepare_transitions
    from jaxpgd.world_model.termination import termination

__version__ = "0.1.0"

# name -> the module that defines it; the same names as above
_DEFINED_IN = {
    "Agent": "jaxpgd.types",
    "Dataset": "jaxpgd.dataset",
    "DatasetInfo": "jaxpgd.dataset",
    "Experience": "jaxpgd.training.experience",
    "InputError": "jaxpgd.errors",
    "Policy": "jaxpgd.types",
    "Trajectory": "jaxpgd.types",
    "TrajectoryDenoiser": "jaxpgd.synthesis.diffusion",
    "Transition": "jaxpgd.types",
    "evaluate": "jaxpgd.simulators.returns",
    "innovation_windows": "jaxpgd.training.innovation_windows",
    "load": "jaxpgd.datasets",
    "make_agent": "jaxpgd.agents",
    "make_dydiff": "jaxpgd.synthesis.dydiff",
    "make_synthesizer": "jaxpgd.synthesis.diffusion",
    "make_world_model_synthesizer": "jaxpgd.synthesis.world_model",
    "prepare_transitions": "jaxpgd.world_model.data",
    "prepare_windows": "jaxpgd.training.windows",
    "synthesize": "jaxpgd.synthesis.diffusion",
    "synthesize_from": "jaxpgd.synthesis.diffusion",
    "termination": "jaxpgd.world_model.termination",
    "train_agent": "jaxpgd.training.agent",
    "train_behaviour": "jaxpgd.training.behaviour",
    "train_denoiser": "jaxpgd.training.denoiser",
    "train_state_denoiser": "jaxpgd.training.state_denoiser",
    "train_world_model": "jaxpgd.training.world_model",
}

__all__ = [
    "Agent",
    "Dataset",
    "DatasetInfo",
    "Experience",
    "InputError",
    "Policy",
    "Trajectory",
    "TrajectoryDenoiser",
    "Transition",
    "evaluate",
    "innovation_windows",
    "load",
    "make_agent",
    "make_dydiff",
    "make_synthesizer",
    "make_world_model_synthesizer",
    "prepare_transitions",
    "prepare_windows",
    "synthesize",
    "synthesize_from",
    "termination",
    "train_agent",
    "train_behaviour",
    "train_denoiser",
    "train_state_denoiser",
    "train_world_model",
]


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_DEFINED_IN[name]), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
