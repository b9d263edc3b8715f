import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpgd.tokens import ACTION_CLIP, TokenCodec, fit_codec, pack
from jaxpgd.types import Trajectory, Transition, valid_steps


def trajectory(*shape: int) -> Trajectory:
    rng = np.random.default_rng(0)
    discount = np.ones(shape)
    discount[..., -1] = 0.0
    return Trajectory(
        obs=jnp.asarray(rng.normal(3.0, 2.0, (*shape, 3))),
        action=jnp.asarray(rng.uniform(-0.99, 0.99, (*shape, 2))),
        reward=jnp.asarray(rng.normal(size=shape)),
        discount=jnp.asarray(discount),
        mask=jnp.ones(shape, bool),
    )


CODEC = TokenCodec(
    mean=jnp.array([1.0, 2.0, 3.0, 0.1, -0.1, 5.0, 0.2]),
    std=jnp.array([0.5, 2.0, 1.0, 0.7, 0.8, 10.0, 0.4]),
    obs_dim=3,
    action_dim=2,
)


def test_round_trip() -> None:
    steps = trajectory(4, 5)
    back = CODEC.decode(CODEC.encode(steps))
    for name in ("obs", "action", "reward", "discount", "mask"):
        np.testing.assert_allclose(getattr(back, name), getattr(steps, name), atol=1e-5, err_msg=name)


def test_tokens_by_hand() -> None:
    one = Trajectory(
        obs=jnp.array([[1.5, 2.0, 5.0]]), action=jnp.tanh(jnp.array([[0.8, -0.9]])), reward=jnp.array([15.0]),
        discount=jnp.array([0.0]), mask=jnp.array([True]),
    )  # fmt: skip
    tokens = CODEC.encode(one)
    np.testing.assert_allclose(tokens, [[1.0, 0.0, 2.0, 1.0, -1.0, 1.0, 2.0]], atol=1e-5)
    np.testing.assert_allclose(CODEC.observation(tokens), one.obs, rtol=1e-6)
    np.testing.assert_allclose(CODEC.pre_tanh(tokens), [[0.8, -0.9]], rtol=1e-5)
    assert CODEC.token_dim == 7 and (CODEC.reward, CODEC.done) == (5, 6)
    assert tokens[0, CODEC.obs].shape == (3,) and tokens[0, CODEC.action].shape == (2,)


def test_actions_at_the_bound_are_clipped_not_infinite() -> None:
    raw = pack(jnp.zeros((2, 1)), jnp.array([[1.0], [-1.0]]), jnp.zeros(2), jnp.ones(2))
    np.testing.assert_allclose(raw[:, 1], [np.arctanh(ACTION_CLIP), -np.arctanh(ACTION_CLIP)], rtol=1e-4)


@pytest.mark.parametrize(
    ("discount", "mask"),
    [
        ([1, 1, 1, 1], [1, 1, 1, 0]),  # nothing is known of what follows the last step
        ([1, 1, 1, 0], [1, 1, 1, 1]),  # a terminal bootstraps nothing
        ([1, 0, 1, 1], [1, 1, 0, 0]),  # steps after a terminal do not exist
        ([1, 0, 1, 0], [1, 1, 0, 0]),
        ([0, 0, 0, 0], [1, 0, 0, 0]),
        ([0], [1]),
        ([1], [0]),
    ],
)
def test_valid_steps(discount: list[float], mask: list[int]) -> None:
    np.testing.assert_array_equal(valid_steps(jnp.array(discount, jnp.float32)), np.array(mask, bool))


def test_a_done_entry_above_one_half_is_a_terminal() -> None:
    raw = jnp.zeros((4, 7)).at[:, 6].set(jnp.array([-3.0, 0.49, 0.51, 0.0]))
    decoded = CODEC.decode((raw - CODEC.mean) / CODEC.std)
    np.testing.assert_array_equal(decoded.discount, [1, 1, 0, 1])
    np.testing.assert_array_equal(decoded.mask, [True, True, True, False])


def test_statistics_are_those_of_the_windows() -> None:
    rng = np.random.default_rng(1)
    size, length = 30, 4
    data = Transition(
        obs=rng.normal(2.0, 3.0, (size, 2)).astype(np.float32),
        action=rng.uniform(-1.0, 1.0, (size, 1)).astype(np.float32),
        reward=rng.normal(size=size).astype(np.float32),
        discount=(rng.random(size) > 0.3).astype(np.float32),
        next_obs=np.zeros((size, 2), np.float32),
    )
    starts = np.array([0, 1, 5, 5, 26])
    codec = fit_codec(data, starts, length)
    raw = np.asarray(pack(*(jnp.asarray(x) for x in (data.obs, data.action, data.reward, data.discount))), np.float64)
    brute = np.concatenate([raw[s : s + length] for s in starts])
    np.testing.assert_allclose(codec.mean, brute.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(codec.std, brute.std(0), rtol=1e-4)
    assert (codec.obs_dim, codec.action_dim) == (2, 1)


def test_a_constant_feature_is_not_divided_by_zero() -> None:
    size = 6
    data = Transition(
        obs=np.stack([np.full(size, 1e3), np.arange(size)], axis=1).astype(np.float32), action=np.zeros((size, 1), np.float32),
        reward=np.zeros(size, np.float32), discount=np.ones(size, np.float32), next_obs=np.zeros((size, 2), np.float32),
    )  # fmt: skip
    codec = fit_codec(data, np.array([0]), size)
    np.testing.assert_allclose(codec.std, [1, np.std(np.arange(size)), 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(codec.mean, [1e3, 2.5, 0, 0, 0], rtol=1e-6)


def limits_data(size: int = 40) -> tuple[Transition, np.ndarray]:
    rng = np.random.default_rng(2)
    discount = np.ones(size, np.float32)
    discount[19] = 0.0
    data = Transition(
        obs=rng.normal([5.0, -100.0], [0.1, 30.0], (size, 2)).astype(np.float32),
        action=rng.uniform(-0.8, 1.0, (size, 2)).astype(np.float32),
        reward=rng.normal(3.0, 2.0, size).astype(np.float32),
        discount=discount,
        next_obs=np.zeros((size, 2), np.float32),
    )
    data.action[7] = [1.0, -1.0]  # type: ignore[index]  # numpy
    return data, np.array([0, 20])


def whole(data: Transition) -> Trajectory:
    return Trajectory(data.obs, data.action, data.reward, data.discount, jnp.ones(data.reward.shape, bool))


def test_limits_become_minus_one_and_one_and_actions_stay_as_they_are() -> None:
    """Over all transitions, whether windows cover them or not; the inverse gives back every number, bounds included."""
    data, starts = limits_data()
    codec = fit_codec(data, starts, 4, 0.25, "limits")
    tokens = np.asarray(codec.encode(whole(data)))
    np.testing.assert_allclose(tokens.min(0), -1.0, atol=2e-6)
    np.testing.assert_allclose(tokens.max(0), 1.0, atol=2e-6)
    low, high = data.action.min(0), data.action.max(0)
    np.testing.assert_allclose(tokens[:, codec.action], 2 * (data.action - low) / (high - low) - 1, atol=1e-6)  # no arctanh
    np.testing.assert_array_equal(tokens[:, : codec.reward], codec.encode_steps(data.obs, data.action))
    back = codec.decode(jnp.asarray(tokens))
    for name in ("obs", "action", "reward", "discount"):
        np.testing.assert_allclose(getattr(back, name), getattr(data, name), rtol=1e-5, atol=1e-5, err_msg=name)


def test_what_is_decoded_stays_within_the_limits() -> None:
    data, starts = limits_data()
    codec = fit_codec(data, starts, 4, 0.25, "limits")
    far = codec.decode(jnp.full((3, codec.token_dim), 7.0))
    np.testing.assert_allclose(far.obs, np.broadcast_to(data.obs.max(0), (3, 2)), rtol=1e-6)
    np.testing.assert_allclose(far.action, 1.0 * np.broadcast_to(data.action.max(0), (3, 2)), rtol=1e-6)
    np.testing.assert_array_equal(codec.observation(jnp.full((3, codec.token_dim), 7.0)), far.obs)


def test_entries_that_never_change_are_not_divided_by_zero_by_limits_either() -> None:
    data, starts = limits_data()
    codec = fit_codec(data.replace(reward=np.full(40, 2.0, np.float32)), starts, 4, 0.25, "limits")  # type: ignore[attr-defined]
    assert (float(codec.mean[codec.reward]), float(codec.std[codec.reward])) == (2.0, 1.0)


def test_a_codec_passes_through_jit_and_vmap() -> None:
    steps = trajectory(3, 5)
    encode = jax.jit(jax.vmap(lambda codec, t: codec.encode(t), in_axes=(None, 0)))
    np.testing.assert_allclose(encode(CODEC, steps), CODEC.encode(steps), rtol=1e-5, atol=1e-6)
