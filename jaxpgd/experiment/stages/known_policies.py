"""Policies that are known without training: of built-in environments, and the actor's file that a config names."""

from jaxpgd.dataset import Dataset
from jaxpgd.envs.builtin import builtin_environment
from jaxpgd.envs.point2d import behaviour_policy, target_policy
from jaxpgd.experiment.config import Config
from jaxpgd.simulators.environments import is_builtin
from jaxpgd.simulators.stored_actor import actor_for
from jaxpgd.types import Policy


def known_target(dataset: Dataset) -> Policy | None:
    """The target policy that a built-in environment comes with, if any."""
    if not is_builtin(dataset.info):
        return None
    return target_policy(builtin_environment(dataset.info.env_id))


def known_behaviour(config: Config, dataset: Dataset) -> Policy | None:
    """The policy that collected the data: the actor that the config names, or a built-in environment's; else None."""
    if config.evaluation.behaviour:
        return actor_for(config.evaluation.behaviour, dataset.obs_dim, dataset.action_dim, "evaluation.behaviour")
    if not is_builtin(dataset.info):
        return None
    return behaviour_policy(builtin_environment(dataset.info.env_id))
