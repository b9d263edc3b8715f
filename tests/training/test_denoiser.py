import dataclasses
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxpgd.dataset import Dataset, DatasetInfo
from jaxpgd.datasets import load
from jaxpgd.datasets.assemble import assemble
from jaxpgd.diffusion.edm import EDMDenoise, edm_loss
from jaxpgd.errors import InputError
from jaxpgd.experiment.run.checkpoints import load_tree, save_tree
from jaxpgd.experiment.stages.score_trajectories import flat_tokens, real_windows, window_terminal_rate
from jaxpgd.options import numeric
from jaxpgd.parallel import DATA, SEEDS, shard
from jaxpgd.tokens import fit_codec
from jaxpgd.training.denoiser import (
    DenoiserConfig,
    batch_loss,
    denoiser_program,
    init_denoiser,
    learning_rate,
    network,
    total_steps,
    train_denoiser,
    train_step,
    trained_denoiser,
    validation_loss,
)
from jaxpgd.training.state_denoiser import trained_state_denoiser
from jaxpgd.training.windows import Windows, prepare_windows, state_windows
from jaxpgd.types import PyTree, Transition
from jaxpgd.windows import DataConfig, gather_window

CONFIG = DenoiserConfig(
    features=8, blocks=1, groups=4, steps=300, batch_size=16, optimiser="adam", peak_lr=1e-2, ema_width=0.0, ema=0.9,
    validate_every=100, validation_batches=2,
)  # fmt: skip


def make_windows() -> Windows:
    """Every window is a constant of its own: easy to denoise."""
    levels = np.random.default_rng(0).normal(size=40)
    steps = np.repeat(levels, 4).astype(np.float32)
    data = Transition(obs=steps[:, None], action=np.tanh(steps[:, None] / 2), reward=-steps, discount=np.ones(160, np.float32),
                      next_obs=steps[:, None])  # fmt: skip
    starts = np.arange(0, 160, 4)
    on_device = jax.tree.map(jnp.asarray, data)
    return Windows(on_device, jnp.asarray(starts[:32]), jnp.asarray(starts[32:]), fit_codec(data, starts[:32], 4), 4)


WINDOWS = make_windows()


def short_episodes(others: float = 0.0) -> Dataset:
    """An episode of 2 steps that ends in a terminal, one of 3 that is cut, one of 6; `others` is added to all but the first."""
    offsets = np.array([0, 2, 5, 11])
    x = np.random.default_rng(1).normal(size=(11, 1)) + others * (np.arange(11) >= 2)[:, None]
    info = DatasetInfo(name="hand", source="npz", action_low=(-1.0,), action_high=(1.0,))
    steps = np.arange(11)
    return assemble(info, x, np.tanh(x), x[:, 0], x, steps == 1, (steps == 4) | (steps == 10), offsets)


PADDED = DataConfig(window=4, pad_short=True, validation_fraction=0.0)


@pytest.fixture(scope="module")
def vmapped() -> Any:
    """Two trainings in one program: keys and learning rates differ; the second does not learn."""
    hypers = dataclasses.replace(CONFIG, peak_lr=jnp.asarray([1e-2, 0.0]))
    axes = dataclasses.replace(CONFIG, **dict.fromkeys(numeric(DenoiserConfig), None) | {"peak_lr": 0})
    train = jax.jit(jax.vmap(lambda k, h: train_denoiser(k, WINDOWS, h), in_axes=(0, axes)))
    return train(jax.random.split(jax.random.key(0), 2), hypers)


def test_the_loss_goes_down_where_it_may_learn(vmapped: Any) -> None:
    _, metrics = vmapped
    loss, held_out = np.asarray(metrics["loss"]), np.asarray(metrics["validation_loss"])
    assert loss.shape == held_out.shape == (2, 3)
    assert loss[0, -1] < 0.6 * loss[1, -1]
    assert held_out[0, -1] < 0.7 * held_out[0, 0] or held_out[0, -1] < 0.6 * held_out[1, -1]
    assert (held_out[1] == held_out[1, 0]).all()  # the same weights have the same validation loss, chunk after chunk
    np.testing.assert_allclose(metrics["learning_rate"][1], 0)


def test_the_trained_denoiser_denoises(vmapped: Any) -> None:
    """At sigma 1 a constant window of variance 1 is known better from 4 noisy copies than entry by entry."""
    denoiser = jax.tree.map(lambda x: x[0], vmapped[0].replace(codec=None)).replace(codec=WINDOWS.codec)
    x0 = jax.vmap(WINDOWS.tokens)(WINDOWS.validation)
    noised = x0 + jax.random.normal(jax.random.key(9), x0.shape)
    cleaned = jax.jit(jax.vmap(lambda x: denoiser.denoise(x, jnp.asarray(1.0))))(noised)
    live = slice(0, 3)  # the done entry is constant
    assert jnp.square(cleaned - x0)[..., live].mean() < 0.75 * jnp.square(noised / 2 - x0)[..., live].mean()
    assert denoiser.length == 4


@pytest.fixture(scope="module")
def driven() -> Any:
    """Four single-step chunks with averages every second step, as Python drives them."""
    config = dataclasses.replace(CONFIG, steps=4, validate_every=1, validation_batches=1, ema=0.75, ema_every=2)
    program = denoiser_program(WINDOWS, config)
    states = [jax.jit(program.init)(jax.random.key(3), WINDOWS)]
    chex.clear_trace_counter()
    chunk = jax.jit(chex.assert_max_traces(program.chunk, n=1))
    rows = []
    for index in range(program.chunks):
        state, row = chunk(states[-1], WINDOWS, jnp.asarray(index))
        states.append(state)
        rows.append(row)
    return config, program, states, rows, chunk


def leaves(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_averaged_weights_by_hand(driven: Any) -> None:
    states = driven[2]
    params, ema = [leaves(s.params) for s in states], [leaves(s.ema_params) for s in states]
    np.testing.assert_array_equal(ema[0], params[0])
    np.testing.assert_array_equal(ema[1], ema[0])
    np.testing.assert_allclose(ema[2], 0.75 * ema[1] + 0.25 * params[2], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(ema[3], ema[2])
    np.testing.assert_allclose(ema[4], 0.75 * ema[3] + 0.25 * params[4], rtol=1e-5, atol=1e-7)


def test_adam_with_the_schedule(driven: Any) -> None:
    """The first Adam step moves every weight that has a gradient by the learning rate."""
    _, _, states, rows, _ = driven
    rates = [float(r["learning_rate"]) for r in rows]
    expected = [float(learning_rate(jnp.asarray(i), CONFIG, 4)) for i in range(4)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    moved = np.abs(leaves(states[1].params) - leaves(states[0].params))
    assert np.isclose(moved, rates[0], rtol=0.02).mean() > 0.8 and moved.max() < 1.02 * rates[0]
    assert [int(s.step) for s in states] == [0, 1, 2, 3, 4]


def test_chunks_trace_once(driven: Any) -> None:
    """`driven` asserts it of the chunks that it runs; here is one more, of the first state and another index."""
    *_, states, _, chunk = driven
    chunk(states[0], WINDOWS, jnp.asarray(7))


def test_trainings_of_any_length_share_a_compiled_chunk() -> None:
    def first(**changes: Any) -> tuple[str, int]:
        program = denoiser_program(WINDOWS, dataclasses.replace(CONFIG, **changes))
        state = jax.eval_shape(program.init, jax.random.key(0), WINDOWS)
        text = jax.jit(program.chunk).lower(state, WINDOWS, jnp.asarray(0)).as_text()
        return text, int(jax.jit(program.init)(jax.random.key(0), WINDOWS).total)

    short, long, epochs = first(), first(steps=700), first(epochs=200)
    assert [total for _, total in (short, long, epochs)] == [300, 700, 400]
    assert short[0] == long[0] == epochs[0]
    assert short[0] != first(warmup_fraction=0.5, ema_every=2)[0]  # what is structure is in the text


def test_a_checkpoint_without_the_number_of_steps_is_refused_by_name(tmp_path: Path, driven: Any) -> None:
    """As those were that were written before the state had it."""
    state = driven[2][-1]
    save_tree(tmp_path / "old", {name: value for name, value in vars(state).items() if name != "total"})
    with pytest.raises(InputError, match=r"entry 'total' is missing\. It was written .* by another version of jaxpgd; delete"):
        load_tree(tmp_path / "old", state)


def test_validation_is_the_loss_of_the_averaged_weights_at_fixed_noise(driven: Any) -> None:
    _, _, states, rows, _ = driven
    state = states[-1]
    key = jax.random.split(jax.random.key(0), 1)[0]
    loss = jax.jit(lambda p: batch_loss(key, p, state.hypers, WINDOWS, WINDOWS.validation))
    np.testing.assert_allclose(rows[-1]["validation_loss"], loss(state.ema_params), rtol=1e-4)
    again = jax.jit(lambda s: validation_loss(s, WINDOWS))
    other = state.replace(key=jax.random.key(77), params=jax.tree.map(jnp.zeros_like, state.params))
    np.testing.assert_array_equal(again(state), again(other))


def test_learning_rate_by_hand() -> None:
    hypers = DenoiserConfig(peak_lr=2.0, warmup_fraction=0.1, initial_lr_fraction=0.1)
    rate = lambda step: float(learning_rate(jnp.asarray(step), hypers, 100))
    np.testing.assert_allclose([rate(s) for s in (0, 5, 10, 55, 100)], [0.2, 1.1, 2.0, 1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(rate(40), 1.0 + np.cos(np.pi / 3), rtol=1e-5)  # a third of the decay
    flat = DenoiserConfig(peak_lr=1.0, warmup_fraction=0.0)
    np.testing.assert_allclose(learning_rate(jnp.asarray(1), flat, 3), 1.0)


@pytest.mark.parametrize(("epochs", "windows", "expected"), [(0, 1000, 300), (3, 100, 100), (20, 100, 200), (1, 1, 100)])
def test_steps_come_in_whole_chunks(epochs: int, windows: int, expected: int) -> None:
    """3 epochs of 100 windows in batches of 16 are 19 steps: one chunk of 100; 20 are 125: two."""
    assert total_steps(dataclasses.replace(CONFIG, epochs=epochs), windows) == expected


def test_prepared_windows() -> None:
    """Four episodes of 6 steps, one held out; the codec's statistics are those of the training windows alone."""
    steps = np.arange(24.0)
    ends = steps % 6 == 5
    info = DatasetInfo(name="hand", source="npz", action_low=(-1.0,), action_high=(1.0,))
    dataset = assemble(
        info, steps[:, None], steps[:, None] * 0, steps, steps[:, None] + 1, ends & (steps > 6), ends & (steps < 6),
        np.arange(0, 25, 6),
    )  # fmt: skip
    config = DataConfig(window=4, stride=1, validation_fraction=0.25, allow_timeout_end=True)
    windows = prepare_windows(dataset, config)
    train, held = np.asarray(windows.train), np.asarray(windows.validation)
    assert len(train) == 9 and len(held) == 3 and len(set(held // 6)) == 1
    assert not set(held // 6) & set(train // 6)
    brute = np.concatenate([steps[s : s + 4] for s in train])
    np.testing.assert_allclose(windows.codec.mean[0], brute.mean(), rtol=1e-5)
    np.testing.assert_allclose(windows.codec.std[0], brute.std(), rtol=1e-5)
    tokens = jax.vmap(windows.tokens)(windows.train)
    np.testing.assert_allclose(tokens.mean((0, 1))[0], 0, atol=1e-5)
    limits = dataclasses.replace(config, normalisation="limits")
    scaled = prepare_windows(dataset, limits)
    np.testing.assert_allclose(scaled.codec.encode(real_windows(scaled, train)).max(), 1.0, rtol=1e-6)
    assert (scaled.codec.squashed, scaled.unit.squashed) == (False, True)
    chex.assert_trees_all_equal(scaled.unit, windows.unit)  # errors and distances keep their unit
    np.testing.assert_array_equal(
        flat_tokens(scaled, real_windows(scaled, train)), flat_tokens(windows, real_windows(windows, train))
    )
    assert windows.unit is windows.codec
    with pytest.raises(InputError, match=r"data.window = 8: expected at most 6"):
        prepare_windows(dataset, DataConfig(window=8))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_state_denoiser_scales_its_conditions_as_in_training(scaled: bool) -> None:
    chosen = state_windows(WINDOWS, "clean", scaled=scaled)
    state = lambda: init_denoiser(jax.random.key(0), chosen, CONFIG)
    made = jax.eval_shape(lambda: trained_state_denoiser(state(), chosen, "clean"))
    assert made.denoise.scaled is scaled and chosen.scaled is scaled and not WINDOWS.scaled


def test_padding_is_nothing_where_no_episode_is_short() -> None:
    """The compiled loss is that of windows without padding: the draw, the gather, the EDM loss of each, their mean."""
    dataset, config = load("point2d", episodes=4), dataclasses.replace(CONFIG, batch_size=2)
    windows = prepare_windows(dataset, DataConfig(window=8, pad_short=True))
    assert windows.left is None
    state = init_denoiser(jax.random.key(0), windows, config)

    def plain(key: Array, params: PyTree, h: DenoiserConfig, windows: Windows) -> Array:
        key_draw, key_loss = jax.random.split(key)
        drawn = windows.train[jax.random.randint(key_draw, (2,), 0, windows.train.shape[0])]
        drawn, keys = shard((drawn, jax.random.split(key_loss, 2)), SEEDS, DATA)
        x0 = jax.vmap(lambda s: windows.codec.encode(gather_window(windows.transitions, s, 8))[:, : windows.dim])(drawn)
        denoise = EDMDenoise(params, h.sigma_data, network(config))
        loss = lambda key, x0: edm_loss(key, denoise, x0, h.p_mean, h.p_std, p_high=h.p_high, known=windows.known)
        return jax.vmap(loss)(keys, x0).mean()

    for chosen in (windows, state_windows(windows, "clean")):
        params = init_denoiser(jax.random.key(0), chosen, config).params
        given = (jax.random.key(1), params, state.hypers, chosen)
        ours = lambda key, params, h, w: batch_loss(key, params, h, w, w.train)
        programs = [jax.jit(f).lower(*given).as_text().partition("\n")[2] for f in (ours, plain)]  # without their names
        assert programs[0] == programs[1]
    assert trained_denoiser(state, windows).ends is None


@pytest.mark.parametrize("states", [False, True])
def test_nothing_after_a_short_episode_counts(states: bool) -> None:
    """Whatever stands there in the data: the same loss, bit for bit, and the same gradient; in validation as well."""
    config, losses = dataclasses.replace(CONFIG, batch_size=4), []
    codec = prepare_windows(short_episodes(), PADDED).codec
    for others in (0.0, 100.0):
        windows = dataclasses.replace(prepare_windows(short_episodes(others), PADDED), codec=codec)
        windows = dataclasses.replace(windows, train=jnp.array([0]), validation=jnp.array([0]))
        chosen = state_windows(windows, "clean") if states else windows
        state = init_denoiser(jax.random.key(0), chosen, config)
        new, metrics = jax.jit(lambda s, w: train_step(s, w))(state, chosen)
        losses.append((metrics, new.params, jax.jit(lambda s, w: validation_loss(s, w))(state, chosen)))
    assert losses[0][0]["loss"] > 0
    chex.assert_trees_all_equal(*losses)


def test_statistics_are_those_of_own_steps() -> None:
    dataset = short_episodes()
    windows = prepare_windows(dataset, PADDED)
    assert windows.train.tolist() == [0, 2, 5, 6, 7]
    own = np.concatenate([np.asarray(dataset.obs)[s:e] for s, e in ((0, 2), (2, 5), (5, 9), (6, 10), (7, 11))])
    np.testing.assert_allclose(windows.codec.mean[0], own.mean(), rtol=1e-5)
    np.testing.assert_allclose(windows.codec.std[0], own.std(), rtol=1e-5)
    ends = windows.ends(windows.train)
    assert ends is not None and ends.steps.tolist() == [2, 3, 4, 4, 4]
    assert ends.terminal.tolist() == [True, False, False, False, False]
    state = init_denoiser(jax.random.key(0), windows, CONFIG)
    denoiser = jax.jit(lambda s, w: trained_denoiser(s, w))(state, windows)  # as inside a jitted training
    assert denoiser.ends is not None
    np.testing.assert_allclose(denoiser.ends.share, np.array([[0, 0], [0, 1], [1, 0], [3, 0]]) / 5, rtol=1e-6)
    assert window_terminal_rate(windows) == pytest.approx(1 / 5)
    found = real_windows(windows, windows.train)
    assert found.mask.sum(-1).tolist() == [2, 2, 3, 3, 3]


MUON = dataclasses.replace(
    CONFIG, optimiser="muon", muon_levels=1, ema_width=0.1, ema=0.999, steps=4, batch_size=4, validate_every=2,
    validation_batches=1,
)  # fmt: skip


def test_denoiser_training_with_muon_resumes_bit_for_bit(tmp_path: Path) -> None:
    program = denoiser_program(WINDOWS, MUON)
    chunk = jax.jit(program.chunk)
    first, _ = chunk(jax.jit(program.init)(jax.random.key(0), WINDOWS), WINDOWS, jnp.asarray(0))
    save_tree(tmp_path / "state", first)
    target = jax.eval_shape(program.init, jax.random.key(0), WINDOWS)
    resumed, _ = chunk(load_tree(tmp_path / "state", target), WINDOWS, jnp.asarray(1))
    expected, _ = chunk(first, WINDOWS, jnp.asarray(1))
    unkeyed = lambda state: state.replace(key=jax.random.key_data(state.key))
    chex.assert_trees_all_equal(unkeyed(resumed), unkeyed(expected))


@pytest.mark.slow
def test_seeds_of_muon_in_one_program() -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    train = lambda key: train_denoiser(key, WINDOWS, MUON)[0].denoise.params
    both, alone = jax.jit(jax.vmap(train))(keys), jax.jit(train)(keys[1])
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], both), alone, atol=2e-5)


def test_a_step_that_is_left_out_leaves_muon_as_it_was() -> None:
    """Steps on numbers that are not finite, with `skip`, which change neither momentum nor averaged weights."""
    program = denoiser_program(WINDOWS, MUON, skip=True)
    state = init_denoiser(jax.random.key(0), WINDOWS, MUON)
    broken = dataclasses.replace(WINDOWS, transitions=WINDOWS.transitions.replace(obs=WINDOWS.transitions.obs * jnp.nan))
    new, metrics = jax.jit(program.chunk)(state, broken, jnp.asarray(0))
    chex.assert_trees_all_equal((new.params, new.ema_params, new.optimiser), (state.params, state.ema_params, state.optimiser))
    assert int(new.step) == 2 and metrics["skipped_updates"] == 1.0
