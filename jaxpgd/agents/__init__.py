"""Offline-RL agents as pure functions, and the table of them by name."""

from collections.abc import Callable
from typing import Any, get_type_hints

from jax import Array

from jaxpgd.agents.bc import BCConfig, bc
from jaxpgd.agents.cql import CQLConfig, cql
from jaxpgd.agents.diffusion_ql import DiffusionQLConfig, diffusion_ql
from jaxpgd.agents.iql import IQLConfig, iql
from jaxpgd.agents.normalised import normalise_observations, replace_hypers
from jaxpgd.agents.rebrac import ReBRACConfig, rebrac
from jaxpgd.agents.td3_bc import TD3BCConfig, td3_bc
from jaxpgd.errors import check
from jaxpgd.types import Agent

__all__ = [
    "AGENTS",
    "BCConfig",
    "CQLConfig",
    "DiffusionQLConfig",
    "IQLConfig",
    "ReBRACConfig",
    "TD3BCConfig",
    "bc",
    "cql",
    "diffusion_ql",
    "iql",
    "make_agent",
    "normalise_observations",
    "rebrac",
    "replace_hypers",
    "td3_bc",
]

AGENTS: dict[str, Callable[..., Agent[Any]]] = {
    "td3_bc": td3_bc,
    "iql": iql,
    "bc": bc,
    "cql": cql,
    "diffusion_ql": diffusion_ql,
    "rebrac": rebrac,
}


def make_agent(
    kind: str, options: Any, action_dim: int, *, obs_mean: Array | None = None, obs_std: Array | None = None
) -> Agent[Any]:
    """The agent of a kind for actions [action_dim]. With obs_mean [O] and obs_std [O] it standardises its observations.

    Raises InputError for an unknown kind, the options of another one, or one of the two statistics without the other.
    """
    check(kind in AGENTS, "agent.kind", kind, "one of " + ", ".join(sorted(AGENTS)))
    expected = get_type_hints(AGENTS[kind])["options"]
    check(isinstance(options, expected), f"agent.{kind}", type(options).__name__, f"{expected.__name__}, the options of {kind}")
    check((obs_mean is None) == (obs_std is None), "obs_std", obs_std, "given if and only if obs_mean is")
    agent = AGENTS[kind](options, action_dim=action_dim)
    return agent if obs_mean is None or obs_std is None else normalise_observations(agent, obs_mean, obs_std)
