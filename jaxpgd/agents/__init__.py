"""Offline-RL agents as pure functions, and the table that makes them by name."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jax import Array

from jaxpgd.agents.bc import BCHypers, bc
from jaxpgd.agents.cql import CQLHypers, cql
from jaxpgd.agents.diffusion_ql import DiffusionQLHypers, diffusion_ql
from jaxpgd.agents.iql import IQLHypers, iql
from jaxpgd.agents.normalised import normalise_observations, replace_hypers
from jaxpgd.agents.td3_bc import TD3BCHypers, td3_bc
from jaxpgd.errors import check
from jaxpgd.types import Agent

__all__ = [
    "AGENTS",
    "BCHypers",
    "CQLHypers",
    "DiffusionQLHypers",
    "IQLHypers",
    "TD3BCHypers",
    "bc",
    "cql",
    "diffusion_ql",
    "iql",
    "make_agent",
    "normalise_observations",
    "replace_hypers",
    "td3_bc",
]

# factory, and the names of the structural settings that it takes besides action_dim
AGENTS: dict[str, tuple[Callable[..., Agent[Any]], tuple[str, ...]]] = {
    "td3_bc": (td3_bc, ("hidden", "critic_updates", "actor_first", "init", "actor", "policy_delay")),
    "iql": (iql, ("hidden", "init", "stale_value")),
    "bc": (bc, ("hidden",)),
    "cql": (cql, ("hidden", "n_actions")),
    "diffusion_ql": (
        diffusion_ql,
        (
            "hidden",
            "steps",
            "candidates",
            "choice",
            "ema_every",
            "time_features",
            "own_score",
            "max_q_backup",
            "action_reconstruction",
            "critic_hidden",
            "critic_activation",
        ),
    ),
}


def make_agent(
    kind: str, section: Any, action_dim: int, *, obs_mean: Array | None = None, obs_std: Array | None = None
) -> Agent[Any]:
    """The agent `kind` for actions [action_dim], with structure and numeric settings read from the attributes of `section`.

    With obs_mean [O] and obs_std [O] the agent standardises its observations. Raises InputError for an unknown kind, a missing
    setting, or one of the two statistics without the other.
    """
    check(kind in AGENTS, "agent.kind", kind, "one of " + ", ".join(sorted(AGENTS)))
    factory, structural = AGENTS[kind]
    check((obs_mean is None) == (obs_std is None), "obs_std", obs_std, "given if and only if obs_mean is")
    agent = factory(action_dim=action_dim, **{name: _setting(kind, section, name) for name in structural})
    names = [field.name for field in dataclasses.fields(agent.hypers)]
    agent = dataclasses.replace(agent, hypers=type(agent.hypers)(**{name: _setting(kind, section, name) for name in names}))
    return agent if obs_mean is None or obs_std is None else normalise_observations(agent, obs_mean, obs_std)


def _setting(kind: str, section: Any, name: str) -> Any:
    check(hasattr(section, name), f"agent.{kind}", type(section).__name__, f"a section with {name!r}")
    return getattr(section, name)
