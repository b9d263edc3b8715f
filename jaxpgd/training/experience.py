"""Where an agent's batches come from, and how a refresh makes the synthetic part of them."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpgd.resampling import effective_sample_size
from jaxpgd.synthesis.filters import Filter
from jaxpgd.synthesis.replay import resample, sample_real
from jaxpgd.tokens import saturated
from jaxpgd.types import Metrics, Policy, Synthesizer, Trajectory, Transition, until_terminal

_SCORED = 512  # trajectories of a refresh that the policy's likelihood is estimated from
_CUT = ("truncated", "length")  # of rollouts that are cut, before any filter
_PROFILE = ("profile_sigma", "guidance_norm", "score_norm")  # the strength of guidance by noise level


@struct.dataclass
class Experience:
    """Where batches come from: real transitions [M], and a synthesizer for the synthetic part (None: real data only).

    `first` makes the trajectories that the replay holds before any update; None: `synthesizer`. `filter` chooses among the
    trajectories of a refresh.
    """

    real: Transition
    synthesizer: Synthesizer | None = None
    first: Synthesizer | None = None
    filter: Filter = Filter()


def synthesize(
    key: Array, synthesizer: Synthesizer, policy: Policy, data: Experience, count: int, coefficient: Array | None
) -> tuple[Trajectory, Metrics]:
    """The `count` trajectories [count, T] of a refresh for a policy, resampled by weight and filtered, and its metrics.

    `coefficient` [] replaces that of a guided synthesizer. Metrics are those of `refresh_metrics`, the `coefficient`, the
    strength of guidance by noise level where the synthesizer of `data` has it, and what is left of rollouts that are cut.
    """
    if coefficient is not None and synthesizer.guided:
        synthesizer = synthesizer.with_coefficient(coefficient)
    key_start, key_sample, key_resample = jax.random.split(key, 3)
    start = sample_real(key_start, data.real, data.filter.needed(count))
    synthesis = synthesizer(key_sample, policy, start.obs)
    trajectory = resample(key_resample, synthesis.trajectory, synthesis.log_weight)
    metrics = refresh_metrics(policy, start, trajectory, synthesis.log_weight)
    for name, without in (("coefficient", 0.0), ("ancestors", 1.0), ("exponent", 1.0)):
        metrics[name] = jnp.asarray(synthesis.info.get(name, without), jnp.float32)
    if data.synthesizer is not None and data.synthesizer.may_be_empty:  # also where the first refresh cuts nothing
        metrics |= {name: synthesis.info.get(name, jnp.zeros((), jnp.float32)) for name in _CUT}
    levels = 0 if data.synthesizer is None else data.synthesizer.profile_levels
    if levels > 0:  # an unguided first refresh has no strength
        metrics |= {name: synthesis.info.get(name, jnp.zeros(levels, jnp.float32)) for name in _PROFILE}
    return data.filter(jax.random.fold_in(key_resample, 1), trajectory, count), metrics


def refresh_metrics(policy: Policy, real: Transition, synthetic: Trajectory, log_weight: Array) -> Metrics:
    """Metrics [] of the trajectories [N, T] of a refresh before any filter, with real transitions [N] to compare them with.

    `ess`: effective sample size of the weights [N] over N (1 without weights); `clipped_actions`: share of actions at the
    clip of tokens; and, for policies with a density, the log-likelihood per action of the dataset (`data_log_likelihood`) and
    of the trajectories up to their terminals (`log_likelihood`), in nats.
    """
    real, scored = jax.tree.map(lambda x: x[:_SCORED], (real, synthetic))
    metrics = {
        "ess": effective_sample_size(log_weight) / log_weight.shape[0],
        "clipped_actions": saturated(synthetic.action).mean(dtype=jnp.float32),
    }
    if policy.log_prob_fn is None:
        return metrics
    log_prob = jax.vmap(policy.log_prob)
    of_data = log_prob(real.obs, real.action).mean()
    # where the last step is known, the mask leaves out but what follows a terminal or a cut
    valid = until_terminal(scored.discount) if scored.last_obs is None else scored.mask
    total = jnp.where(valid, jax.vmap(log_prob)(scored.obs, scored.action), 0.0).sum()
    of_synthetic = total / jnp.maximum(valid.sum(), 1)
    return metrics | {"data_log_likelihood": of_data, "log_likelihood": of_synthetic}


def learned_from(trajectory: Trajectory, *, drop_last: bool, after_terminal: bool) -> Trajectory:
    """Trajectories [N, T] whose mask holds the steps that agents learn from.

    `after_terminal` adds the valid steps after a terminal: those whose next observation is known, or does not matter because
    they end the episode. `drop_last` removes the last step of every trajectory. PGD's released code does both.
    """
    mask, last = trajectory.mask, jnp.arange(trajectory.mask.shape[-1]) == trajectory.mask.shape[-1] - 1
    if after_terminal:
        known = ~last if trajectory.last_obs is None else jnp.ones_like(last)
        mask = known | (trajectory.discount == 0)
    return dataclasses.replace(trajectory, mask=mask & ~last if drop_last else mask)
