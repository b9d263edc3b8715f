"""Training windows of a dataset, as start indices into its flat arrays. No window crosses an episode; none is copied."""

import dataclasses
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.dataset import Dataset
from jaxpgd.errors import InputError, check
from jaxpgd.options import nonnegative, option, options, positive, share
from jaxpgd.tokens import Ends, ended
from jaxpgd.types import Trajectory, Transition, valid_steps


@options
class DataConfig:
    """Which dataset, and which windows of it train the denoiser."""

    name: str = option(
        "point2d", 'dataset: Minari id, path of a D4RL .hdf5 or flat .npz file, "point2d" or "point2d-N" (N steps)'
    )
    env_id: str = option("", "Gymnasium id of the environment to evaluate in; empty: the one that the dataset names")
    window: int = positive(16, "steps per training window, and per synthetic trajectory where synthesis.length is 0")
    stride: int = positive(1, "steps between the starts of training windows")
    add_episode_starts: bool = option(True, "add the window that starts each episode, whatever the stride")
    add_terminals: bool = option(True, "add the window that ends in each terminal, whatever the stride")
    allow_timeout_end: bool = option(True, "keep training windows whose last step is a timeout")
    pad_short: bool = option(False, "pad episodes shorter than a window at their end; false: leave them out")
    terminal_repeats: int = positive(1, "copies of each window that ends in a terminal (published: 1)")
    done_scale: float = nonnegative(
        0.25, "smallest divisor of the terminal flag in tokens; 0: its standard deviation, as published", high=1e3
    )
    normalisation: Literal["standard", "limits"] = option(
        "standard", "tokens: mean 0 and variance 1 (PGD), or limits at -1 and 1 with actions as they are (DyDiff)"
    )
    validation_fraction: float = share(
        0.05, "share of the episodes held out of denoiser training for the validation loss; 0: none"
    )
    fraction: float = share(
        1.0,
        "share of the transitions to use, as random whole episodes; all that learns sees these alone",
        low=1e-6,
        positive=True,
    )
    fraction_seed: int = nonnegative(
        0, "draw of these episodes, whatever the seed of the run; fractions of one draw are parts of each other"
    )
    episodes: int = positive(1000, "episodes to generate with a built-in environment; no effect on other datasets")
    clip_actions: bool = option(False, "clip actions that leave their bounds; false: refuse such data")
    reward_scale: float = positive(1.0, "learned rewards are scale * (reward + shift); reports stay in the dataset's units")
    reward_shift: float = option(0.0, "number added to rewards before they are scaled (IQL on antmaze: -1)")
    reward_normalisation: Literal["none", "return_range", "standard"] = option(
        "none", "scale returns to a range of 1000 (IQL), or standardise rewards (Diffusion-QL on pen)"
    )


# Options of `DataConfig` that select windows: arguments of `window_starts`.
RULES = ("window", "stride", "add_episode_starts", "add_terminals", "allow_timeout_end", "terminal_repeats", "pad_short")


def window_starts(
    dataset: Dataset,
    window: int,
    stride: int = 1,
    add_episode_starts: bool = True,
    add_terminals: bool = True,
    allow_timeout_end: bool = False,
    terminal_repeats: int = 1,
    pad_short: bool = False,
    episodes: np.ndarray | None = None,
) -> np.ndarray:
    """Start indices [W] int32, sorted, of windows of `window` steps inside one episode each. Computed on the host.

    A window is selected if its start is a multiple of `stride` in the flat dataset, if it starts an episode
    (`add_episode_starts`) or if it ends in a terminal (`add_terminals`). Windows that end in a timeout are excluded unless
    `allow_timeout_end`. `episodes` [K] restricts the selection to those episodes. PGD's code selects windows in this way,
    because with a plain stride almost none end in a terminal. Terminals can still be much rarer per step than in the dataset,
    as a window contains at most one: windows that end in one are listed `terminal_repeats` times.
    With `pad_short`, each episode shorter than a window adds one window, padded at its end. Whether it ends in a
    terminal or a timeout depends on the last step before the padding.
    Raises InputError if no window is left, or if every episode is shorter than a window.
    """
    check(window > 0, "data.window", window, "a number above 0")
    check(stride > 0, "data.stride", stride, "a number above 0")
    check(terminal_repeats > 0, "data.terminal_repeats", terminal_repeats, "a number above 0")
    lengths = dataset.lengths()
    chosen = np.ones(len(lengths), bool) if episodes is None else np.isin(np.arange(len(lengths)), episodes)
    longest = int(lengths[chosen].max(initial=0))
    shorter = f"Choose a window of at most {longest} steps, or a dataset of longer episodes."
    check(window <= longest, "data.window", window, f"at most {longest}, the longest episode of {dataset.info.name!r}", shorter)
    rules = (stride, add_episode_starts, add_terminals, allow_timeout_end, terminal_repeats, pad_short)
    starts = _starts(dataset, chosen, window, *rules)
    fewer = "All windows of this length end in a timeout, or the stride skips them: shorten it or allow data.allow_timeout_end."
    check(len(starts) > 0, "data.window", window, "a length that leaves at least one window", fewer)
    return starts


def _starts(
    dataset: Dataset,
    chosen: np.ndarray,
    window: int,
    stride: int,
    add_episode_starts: bool,
    add_terminals: bool,
    allow_timeout_end: bool,
    terminal_repeats: int,
    pad_short: bool,
) -> np.ndarray:
    """`window_starts` for the episodes that `chosen` [E] marks. May be empty."""
    start, lengths = np.arange(dataset.size), dataset.lengths()
    last = np.minimum(start + window, np.repeat(dataset.offsets[1:], lengths)) - 1
    first = np.isin(start, dataset.offsets[:-1])
    short = first & (last - start + 1 < window)  # the only window of an episode that is shorter than one
    terminal = np.asarray(dataset.discount)[last] == 0
    take = start % stride == 0
    if add_episode_starts:
        take |= first
    if add_terminals:
        take |= terminal
    taken = np.repeat(chosen, lengths) & (take & (last - start + 1 == window) | (short & pad_short))
    if not allow_timeout_end:
        taken &= ~dataset.timeout[last]
    return np.repeat(start[taken], np.where(terminal[taken], terminal_repeats, 1)).astype(np.int32)


def window_lengths(dataset: Dataset, starts: np.ndarray, window: int) -> np.ndarray:
    """Steps [W] without padding of the windows at `starts` [W]: less than `window` where the episode is shorter."""
    ends = dataset.offsets[np.searchsorted(dataset.offsets, starts, side="right")]
    return np.asarray(np.minimum(ends - np.asarray(starts, np.int64), window))


def choose_windows(dataset: Dataset, config: DataConfig, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts [W] of training windows, starts [V] of windows in held-out episodes, and the training episodes [K].

    V may be 0. Raises InputError if there is no window to train on.
    """
    selection = dataclasses.asdict(config)
    rules = {name: selection[name] for name in RULES}
    episodes, held_out = split_episodes(dataset, config.validation_fraction, seed)
    try:
        train = window_starts(dataset, episodes=episodes, **rules)
    except InputError as error:
        if dataset.info.whole is None:
            raise
        want = f"a share with a training window in it; this one is {dataset.counts()}"
        raise InputError(f"data.fraction = {config.fraction!r}: expected {want}. {error}") from error
    return train, _starts(dataset, np.isin(np.arange(dataset.episodes), held_out), **rules), episodes


class Coverage(NamedTuple):
    """The shares of transitions and of terminals, among those of the training episodes, that training windows contain."""

    transitions: float
    terminals: float | None  # None: the episodes have none

    @property
    def low(self) -> bool:
        """Whether windows miss more than half of the transitions or of the terminals."""
        return self.transitions < 0.5 or (self.terminals is not None and self.terminals < 0.5)

    def __str__(self) -> str:
        terminals = "" if self.terminals is None else f" and {100 * self.terminals:.3g} % of terminals"
        return f"{100 * self.transitions:.3g} % of transitions{terminals}"


def coverage(dataset: Dataset, starts: np.ndarray, window: int, episodes: np.ndarray) -> Coverage:
    """Coverage of `episodes` [K] by windows of `window` steps at `starts` [W].

    Episodes shorter than a window are covered only if they are padded.
    """
    edges = np.zeros(dataset.size + 1, np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, np.asarray(starts) + window_lengths(dataset, starts, window), -1)
    inside = np.cumsum(edges[:-1]) > 0
    among = steps_of(dataset, episodes)
    terminal = among & (np.asarray(dataset.discount) == 0)
    return Coverage(float(inside[among].mean()), float(inside[terminal].mean()) if terminal.any() else None)


def low_coverage(dataset: Dataset, window: int, pad_short: bool, setting: str = "data.window") -> str:
    """The advice for `Coverage.low`. `setting` names the option of the window's length."""
    pad = "" if pad_short or dataset.lengths().min() >= window else ", or set data.pad_short = true: it pads short episodes"
    return f"most transitions or terminals are in no training window: choose a shorter {setting}{pad}"


def gather_window(transitions: Transition, start: Array, length: int) -> Trajectory:
    """The trajectory [T] of `length` = T (static) steps from `start` [] in flat transitions [M]. vmap over `start`.

    The mask follows `types.Trajectory`: the last step is valid only at a terminal, and steps after a terminal are not.
    """
    chex.assert_rank([transitions.obs, transitions.action, transitions.reward, transitions.discount, start], [2, 2, 1, 1, 0])
    obs, action, reward, discount = (
        jax.lax.dynamic_slice_in_dim(jnp.asarray(x), start, length)
        for x in (transitions.obs, transitions.action, transitions.reward, transitions.discount)
    )
    return Trajectory(obs=obs, action=action, reward=reward, discount=discount, mask=valid_steps(discount))


def gather_padded(transitions: Transition, start: Array, length: int, ends: Ends) -> Trajectory:
    """As `gather_window`, for a window padded after `ends` (of this window, []). Later transitions are not read."""
    chex.assert_rank([transitions.obs, transitions.action, transitions.reward, transitions.discount, start], [2, 2, 1, 1, 0])
    index = start + jnp.minimum(jnp.arange(length), ends.steps - 1)
    obs, action, reward, discount = (
        jnp.asarray(x)[index] for x in (transitions.obs, transitions.action, transitions.reward, transitions.discount)
    )
    return ended(Trajectory(obs=obs, action=action, reward=reward, discount=discount, mask=valid_steps(discount)), ends)


def split_episodes(dataset: Dataset, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random training and validation episodes, sorted, [K] and [E - K]. Validation gets about `fraction` of them.

    With at least two episodes and fraction > 0, each part has at least one; otherwise validation is empty. Raises InputError
    unless fraction is in [0, 1].
    """
    check(0 <= fraction <= 1, "data.validation_fraction", fraction, "a number from 0 to 1")
    count = dataset.episodes
    held = 0 if fraction == 0 or count < 2 else min(max(round(fraction * count), 1), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def steps_of(dataset: Dataset, episodes: np.ndarray) -> np.ndarray:
    """Which steps [M] bool are in `episodes` [K]."""
    return np.repeat(np.isin(np.arange(dataset.episodes), episodes), dataset.lengths())


def held_out_steps(dataset: Dataset, fraction: float, seed: int = 0) -> np.ndarray:
    """Which steps [M] bool are in the validation episodes of `split_episodes`. Raises InputError as that does."""
    return steps_of(dataset, split_episodes(dataset, fraction, seed)[1])
