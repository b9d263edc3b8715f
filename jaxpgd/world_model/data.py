"""Transitions for the training of a world model: those that are informative, split into training and held-out ones."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxpgd.errors import check
from jaxpgd.types import Transition
from jaxpgd.world_model.model import WorldModelConfig
from jaxpgd.world_model.scales import Scales, fit_scales


@struct.dataclass
class WorldModelData:
    """Transitions [M], the indices of those that train and of those that held-out losses are measured on, and scales."""

    transitions: Transition
    train: Array  # [.] int32
    held_out: Array  # [.] int32
    scales: Scales


def prepare_transitions(
    transitions: Transition, config: WorldModelConfig, *, held_out: np.ndarray | None = None, seed: int = 0
) -> WorldModelData:
    """Select informative transitions and hold some of them out, on the host. `transitions` [M] has numpy or jax leaves.

    `held_out` [M] bool marks the transitions of episodes that are held out whole (`windows.held_out_steps`): nothing is learned
    from them, scales included, and `config.holdout_most` of them at random, or all, are what held-out losses are measured on.
    Where it is None or leaves nothing to train on or to measure on, as in a dataset of one episode, single transitions are held
    out: `config.holdout` of them, at most `config.holdout_most`.

    Transitions that end an episode without moving are left out: files without next observations repeat the last observation
    there, and a model would learn that nothing moves where episodes end. Raises InputError as `informative`.
    """
    chosen = informative(transitions, config)
    device = jax.tree.map(lambda x: jnp.asarray(x[chosen]), transitions)
    size = int(chosen.sum())
    order = np.random.default_rng(seed).permutation(size).astype(np.int32)
    apart = np.zeros(size, bool) if held_out is None else np.asarray(held_out)[chosen]
    if apart.any() and not apart.all():
        train, measured = order[~apart[order]], order[apart[order]][: config.holdout_most]
        scales = fit_scales(jax.tree.map(lambda x: x[np.sort(train)], device))
    else:
        held = min(max(1, round(config.holdout * size)), config.holdout_most, size - 1)
        train, measured, scales = order[held:], order[:held], fit_scales(device)
    return WorldModelData(device, jnp.asarray(train), jnp.asarray(measured), scales)


def informative(transitions: Transition, config: WorldModelConfig) -> np.ndarray:
    """Which of M transitions have a known next observation, [M] bool.

    Raises InputError where fewer than two do, one to train on and one held out, or where a classifier is to be learned and no
    transition that ends an episode has one.
    """
    chex.assert_rank([transitions.obs, transitions.action, transitions.next_obs], 2)
    chex.assert_equal_shape([transitions.obs, transitions.next_obs])
    chex.assert_shape([transitions.reward, transitions.discount], (transitions.obs.shape[0],))
    ends = np.asarray(transitions.discount) == 0
    moved = (np.asarray(transitions.next_obs) != np.asarray(transitions.obs)).any(-1)
    check(
        config.termination != "learned" or not ends.any() or bool((ends & moved).any()), "world_model.termination",
        config.termination, "a known rule", "No transition that ends an episode has its next observation in this dataset.",
    )  # fmt: skip
    found: np.ndarray = moved | ~ends
    check(
        int(found.sum()) > 1, "transitions that tell where they lead", int(found.sum()),
        "at least 2, one that the world model is trained on and one held out",
    )  # fmt: skip
    return found
