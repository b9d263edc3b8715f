"""Numbers at the ends of what ranges allow: schedules keep their end points, samples and updates are finite."""

import dataclasses
import functools
import math
import typing
from collections.abc import Iterator
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from hypothesis import given
from hypothesis import strategies as st
from jax import Array

from jaxpgd.agents import AGENTS, make_agent
from jaxpgd.agents.common import gaussian_log_prob
from jaxpgd.diffusion.edm import EDMDenoise, edm_loss, karras_sigmas, vp_sigmas, vp_time
from jaxpgd.diffusion.solvers import SamplerConfig, noise_levels
from jaxpgd.errors import InputError
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.config_files import apply_values, load_config
from jaxpgd.experiment.presets import PRESETS
from jaxpgd.guidance.kinds import GuidanceConfig, moved_by
from jaxpgd.guidance.published import PublishedConfig
from jaxpgd.guidance.smc import SMCConfig
from jaxpgd.guidance.strength import EffectiveSizeStrength
from jaxpgd.options import check_ranges, get, names_of, range_of
from jaxpgd.synthesis.diffusion import TrajectoryDenoiser, make_synthesizer
from jaxpgd.synthesis.filters import make_filter
from jaxpgd.tokens import TokenCodec
from jaxpgd.types import Policy, Trajectory, Transition


def ends(name: str) -> tuple[float, float]:
    """The least and the largest value of a setting."""
    found = range_of(Config(), name)
    return found.low, found.high


NUMBERS = [name for name in names_of(Config) if isinstance(get(Config(), name), float)]


def nested(name: str, value: Any) -> Any:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_two_ends(name: str) -> None:
    low, high = ends(name)
    assert math.isfinite(low) and math.isfinite(high) and low < high
    assert low == 0 or abs(np.float32(low)) > 1.2e-38  # what float32 takes for 0 is not above 0
    for value in (low, high):
        check_ranges(apply_values(Config(), nested(name, value), "test"))
    for value in (low - abs(low) - 1.0, 2.0 * high + 1.0):
        with pytest.raises(InputError, match=f"^{name} = .*: expected "):
            check_ranges(apply_values(Config(), nested(name, value), "test"))


def test_whole_numbers_fit_their_type() -> None:
    with pytest.raises(InputError, match=r"denoiser.steps = 2147483648: expected a number below 2\^31"):
        load_config(None, {"denoiser": {"steps": 2**31}})


def test_presets_are_within() -> None:
    for values in (preset.settings for preset in PRESETS.values()):
        check_ranges(apply_values(Config(), values, "preset"))


def number(name: str) -> st.SearchStrategy[float]:
    """A setting's ends, and numbers between them, in logarithms where both are above 0."""
    low, high = ends(name)
    if low > 0:
        return st.one_of(st.sampled_from([low, high]), st.floats(math.log(low), math.log(high)).map(math.exp))
    return st.one_of(st.sampled_from([low, high]), st.floats(low, high))


SIGMAS = functools.cache(lambda steps: jax.jit(lambda low, high, rho: karras_sigmas(steps, low, high, rho)))


@given(
    st.sampled_from([1, 2, 3, 17]), number("sampler.sigma_min"), number("sampler.sigma_max"), number("sampler.rho"),
    st.booleans(),
)  # fmt: skip
def test_noise_levels_go_from_end_to_end(steps: int, one: float, other: float, rho: float, near: bool) -> None:
    low, high = sorted((one, one * (1 + 1e-7) if near else other))
    sigmas = np.asarray(SIGMAS(steps)(low, high, rho))
    assert sigmas.shape == (steps + 1,) and sigmas[-1] == 0 and sigmas[0] == np.float32(high)
    assert steps == 1 or sigmas[-2] == np.float32(low)
    assert (np.diff(sigmas[:-1]) <= 0).all() and (sigmas[:-1] > 0).all()
    if low < high:
        exact = noise_levels(SamplerConfig(steps=steps, sigma_min=low, sigma_max=high, rho=rho))
        np.testing.assert_allclose(sigmas[:-1], exact, rtol=2e-3)


def test_levels_at_a_bound_are_within_it() -> None:
    """Rounding once put the largest level below 80, or above it: out of the range in which steps churn or are guided."""
    for high in (0.7, 3.0, 50.0, 80.0):
        for low in (0.002, 0.01):
            sigmas = np.asarray(karras_sigmas(18, low, high, 7.0))
            assert sigmas[0] == np.float32(high) and sigmas[-2] == np.float32(low)


@struct.dataclass
class Gaussian:
    """The exact denoiser of Gaussian tokens of standard deviation 0.5."""

    def __call__(self, x: Array, sigma: Array) -> Array:
        return x * 0.25 / (0.25 + sigma**2)


CODEC = TokenCodec(mean=jnp.zeros(5), std=jnp.ones(5), obs_dim=2, action_dim=1)
DENOISER = TrajectoryDenoiser(Gaussian(), CODEC, 3)
KEY, STARTS = jax.random.key(0), jnp.zeros((4, 2))
TOKENS = jax.jit(jax.vmap(lambda made, policy: made.sample(KEY, policy, STARTS)[0]))


def corners(section: Any, prefix: str) -> Iterator[Any]:
    """The section, and with each of its numbers at either end; then all of them at the low and the high end."""
    names = [name for name in names_of(type(section)) if isinstance(get(section, name), float)]
    own = [part for part in (getattr(section, "kind", ""), proposal_of(section)) if part]  # sections that are used
    names = [name for name in names if "." not in name or name.split(".")[0] in own]
    yield section
    for name in names:
        for end in ends(prefix + name):
            yield with_value(section, name, end)
    for side in (0, 1):
        yield functools.reduce(lambda s, name: with_value(s, name, ends(prefix + name)[side]), names, section)


def proposal_of(section: Any) -> str:
    return moved_by(section) if isinstance(section, GuidanceConfig) else ""


def with_value(section: Any, name: str, value: float) -> Any:
    """The section with another value of an option of a dotted name."""
    first, _, rest = name.partition(".")
    return dataclasses.replace(section, **{first: with_value(getattr(section, first), rest, value) if rest else value})


def stacked(made: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *made)


def finite(tree: Any, given: list[Any]) -> None:
    """Every leaf [N, ...] is finite, else what made the first that is not."""
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            bad = ~np.isfinite(np.asarray(leaf)).reshape(len(given), -1).all(-1)
            assert not bad.any(), given[int(np.flatnonzero(bad)[0])]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("kind", get_args(typing.get_type_hints(SamplerConfig)["kind"]))
def test_samplers_at_the_ends_of_their_settings(kind: Any, steps: int) -> None:
    """Ends that cross (sigma_min at its largest) become levels that are equal: those are levels too."""
    given = []
    for section in corners(SamplerConfig(kind=kind, steps=steps, batch_size=4), "sampler."):
        low, high = sorted((section.sigma_min, section.sigma_max))
        given.append(dataclasses.replace(section, sigma_min=low, sigma_max=high))
    given.append(dataclasses.replace(given[0], sigma_min=80.0 * (1 - 1e-9)))
    made = [make_synthesizer(DENOISER, section) for section in given]
    finite(TOKENS(stacked(made), None), given)


MEAN = lambda p, obs: jnp.tanh(obs[:1] - obs[1:2])
LOG_PROB = lambda p, obs, action, variance: gaussian_log_prob(action, MEAN(p, obs), jnp.square(p) + variance)
GUIDANCES: list[dict[str, Any]] = [
    {"kind": "published", "published": PublishedConfig(at=at, normalise=normalise)}  # type: ignore[arg-type]
    for normalise in ("safe", "none")
    for at in ("denoised", "noised")
]
GUIDANCES += [{"kind": kind} for kind in ("reconstruction", "moment")]
GUIDANCES += [
    {"kind": "smc", "smc": SMCConfig(proposal, order, particles)}  # type: ignore[arg-type]
    for proposal in ("none", "reconstruction", "moment") for particles, order in ((1, "second"), (4, "first"))
]  # fmt: skip
GUIDANCES += [{"kind": "reconstruction", "target_ess": 0.5}]


@pytest.mark.slow
@pytest.mark.parametrize("choices", GUIDANCES, ids=lambda own: ",".join(map(str, own.values())))
def test_guidance_at_the_ends_of_its_settings(choices: dict[str, Any]) -> None:
    sampler = SamplerConfig(steps=4, batch_size=4)
    given, policies = [], []
    for section in corners(GuidanceConfig(**choices), "guidance."):
        chosen = dataclasses.replace(section, target_ess=section.target_ess if "target_ess" in choices else 0.0)
        for std in (*ends("agent.td3_bc.policy_std"), 0.5):
            given.append((chosen, std))
            policies.append(Policy(jnp.asarray(std), lambda p, key, obs: MEAN(p, obs), MEAN, LOG_PROB))
    policies = [dataclasses.replace(policies[0], params=policy.params) for policy in policies]
    made = []
    for section, _ in given:
        synthesizer = make_synthesizer(DENOISER, sampler, section, unused="kept")
        if "target_ess" in choices:  # also where a corner has it at 0
            strength = EffectiveSizeStrength(section.target_ess, section.coefficient)
            synthesizer = dataclasses.replace(synthesizer, strength=strength)
        made.append(synthesizer)
    finite(TOKENS(stacked(made), stacked(policies)), given)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(AGENTS))
def test_agents_at_the_ends_of_their_settings(kind: str) -> None:
    """Three updates, the policy's actions and its density, on rewards of 0 (a gradient of 0) and of 1,000."""
    small = {"hidden": (4,), "steps": 2, "candidates": 2, "n_actions": 2, "time_features": 4}
    section = getattr(Config().agent, kind)
    section = dataclasses.replace(section, **{name: small[name] for name in small.keys() & vars(section).keys()})
    given = [(own, reward) for own in corners(section, f"agent.{kind}.") for reward in (0.0, 1e3)]
    agent = make_agent(kind, section, 2)
    hypers = stacked([make_agent(kind, own, 2).hypers for own, _ in given])
    example = Transition(jnp.zeros(3), jnp.zeros(2), jnp.zeros(()), jnp.ones(()), jnp.zeros(3))
    k, lead = jax.random.split(KEY, 4), (agent.batches, 4)
    batch = Transition(
        obs=jax.random.normal(k[0], (*lead, 3)), action=jnp.ones((*lead, 2)).at[:, 1:].set(0.3), reward=jnp.ones(lead),
        discount=jnp.ones(lead).at[:, 0].set(0.0), next_obs=jax.random.normal(k[1], (*lead, 3)),
    )  # fmt: skip
    if agent.next_actions:
        batch = batch.replace(next_action=-batch.action, has_next_action=jnp.ones(lead, bool))  # type: ignore[attr-defined]

    def trained(hypers: Any, reward: Array) -> Any:
        own = batch.replace(reward=reward * batch.reward)  # type: ignore[attr-defined]
        update = lambda state, key: agent.update(key, state, own)
        state, metrics = jax.lax.scan(update, agent.init(KEY, example, hypers), jax.random.split(KEY, 3))
        policy, obs = agent.policy(state), batch.obs[0, 1]
        actions = policy.sample(KEY, obs), policy.mode(obs)
        return state, metrics, actions, jax.value_and_grad(lambda a: policy.log_prob(obs, a, 0.0))(jnp.array([1.0, 0.2]))

    finite(jax.jit(jax.vmap(trained))(hypers, jnp.array([reward for _, reward in given])), given)


@given(number("agent.diffusion_ql.beta_min"), number("agent.diffusion_ql.beta_max"), st.sampled_from([1, 5, 100]))
def test_the_schedule_of_diffusion_ql_is_finite(one: float, other: float, steps: int) -> None:
    low, high = sorted((one, other))
    sigmas = np.asarray(vp_sigmas(steps, low, high))
    assert np.isfinite(np.square(sigmas)).all() and (np.square(sigmas[:-1]) > 0).all() and (np.diff(sigmas) <= 0).all()
    assert np.isfinite(np.asarray(vp_time(jnp.asarray(sigmas), low, high))).all()


class Tanh:
    """A network without parameters."""

    def apply(self, params: Any, x: Array, noise: Array) -> Array:
        return jnp.tanh(x * params) + 0.0 * noise


@jax.jit
def losses(key: Array, mean: Array, std: Array, data: Array, high: Array) -> tuple[Array, Array]:
    def loss(params: Array, key: Array) -> Array:
        denoise = EDMDenoise(params, data, Tanh())  # type: ignore[arg-type]
        return edm_loss(key, denoise, jnp.ones((2, 3)), mean, std, p_high=high)

    return jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0))(jnp.ones(()), jax.random.split(key, 256))


@given(number("denoiser.p_mean"), number("denoiser.p_std"), number("denoiser.sigma_data"), number("denoiser.p_high"))
def test_the_denoising_loss_is_finite(mean: float, std: float, data: float, high: float) -> None:
    assert all(np.isfinite(np.asarray(x)).all() for x in losses(KEY, mean, std, data, high))


@pytest.mark.slow
@given(number("synthesis.filter.temperature"), number("synthesis.filter.keep"), st.sampled_from(["hardmax", "softmax"]))
def test_a_filter_keeps_as_many_as_are_asked_for(temperature: float, keep: float, kind: Any) -> None:
    own = make_filter(dataclasses.replace(Config().synthesis.filter, kind=kind, keep=keep, temperature=temperature))
    count = own.needed(3)
    reward = jax.random.normal(KEY, (count, 1)) + jnp.array([1e3])
    one = jnp.ones((count, 1))
    kept = own(KEY, Trajectory(one[..., None], one[..., None], reward, one, one > 0), 3)
    assert kept.reward.shape == (3, 1) and np.isfinite(np.asarray(kept.reward)).all()
    assert not np.isnan(np.asarray(own.scores(KEY, reward[:, 0]))).any()
