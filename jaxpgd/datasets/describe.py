"""Summary of a dataset, as printed by `jaxpgd data info NAME`."""

from typing import Any

import numpy as np

from jaxpgd.dataset import Dataset, learned_reward
from jaxpgd.datasets.scores import normalized_score, score_column
from jaxpgd.errors import InputError
from jaxpgd.windows import DataConfig, choose_windows, coverage, low_coverage, window_lengths


def describe(dataset: Dataset, *, seed: int = 0, **settings: Any) -> dict[str, Any]:
    """Summary in plain values, ready for JSON: counts, returns, lengths, ends, ranges, windows, bounds, reference returns.

    Windows are those that a run with this seed and these `settings` (of `DataConfig`) trains on. If there are none, the summary
    reports 0 windows and the reason.
    """
    info = dataset.info
    returns, lengths = dataset.returns(), dataset.lengths()
    terminals, timeouts = int((np.asarray(dataset.discount) == 0).sum()), int(dataset.timeout.sum())
    scores, label = normalized_score(info, returns)
    return {
        "name": info.name,
        "source": info.source,
        "made_locally": info.local,
        "environment": info.env_id,
        "episodes": dataset.episodes,
        "transitions": dataset.size,
        "whole": None if info.whole is None else {"episodes": info.whole[0], "transitions": info.whole[1]},
        "obs_dim": dataset.obs_dim,
        "action_dim": dataset.action_dim,
        "returns": _spread(returns),
        "scores": None if scores is None else _spread(scores),
        "score_label": label,
        "score_column": score_column(info),
        "lengths": _spread(lengths),
        "cut": info.cut,
        "ends": {"terminals": terminals, "timeouts": timeouts, "horizon": dataset.episodes - terminals - timeouts},
        "ranges": _ranges(dataset),
        "constant_reward": _constant(np.asarray(dataset.reward)),
        "learned_reward": _learned(dataset),
        "windows": _windows(dataset, DataConfig(**settings), seed),
        "action_low": list(info.action_low),
        "action_high": list(info.action_high),
        "ref_min": info.ref_min,
        "ref_max": info.ref_max,
        "ref_source": info.ref_source,
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    values = np.asarray(values, np.float64)
    return {"mean": float(values.mean()), "std": float(values.std()), "min": float(values.min()), "max": float(values.max())}


def _ranges(dataset: Dataset) -> dict[str, dict[str, float]]:
    obs, ends = np.asarray(dataset.obs), np.cumsum(dataset.info.obs_sizes)
    named = zip(dataset.info.obs_keys, dataset.info.obs_sizes, ends, strict=True)
    parts = {f"obs.{key}": obs[:, end - size : end] for key, size, end in named}
    entries = {**(parts or {"obs": obs}), "action": np.asarray(dataset.action), "reward": np.asarray(dataset.reward)}
    return {key: _spread(values) for key, values in entries.items()}


def _learned(dataset: Dataset) -> dict[str, float] | None:
    """Scale, shift and range of the rewards as learned from. None if they are as stored."""
    info = dataset.info
    if info.rewards_as_stored:
        return None
    spread = _spread(np.asarray(learned_reward(info, dataset.reward)))
    return {"scale": info.reward_scale, "shift": info.reward_shift, **spread}


def _constant(values: np.ndarray) -> float | None:
    return float(values[0]) if bool((values == values[0]).all()) else None


def _windows(dataset: Dataset, config: DataConfig, seed: int) -> dict[str, Any]:
    result: dict[str, Any] = {"length": config.window, "stride": config.stride, "count": 0, "validation": 0,
                              "ending_in_terminal": 0, "padded": 0}  # fmt: skip
    try:
        starts, validation, episodes = choose_windows(dataset, config, seed)
    except InputError as error:
        return {**result, "note": str(error)}
    steps = window_lengths(dataset, starts, config.window)
    last = np.asarray(dataset.discount)[starts + steps - 1]
    covered = coverage(dataset, starts, config.window, episodes)
    warning = {"note": f"warning: {low_coverage(dataset, config.window, config.pad_short)}"} if covered.low else {}
    counts = {"count": len(starts), "validation": len(validation), "ending_in_terminal": int((last == 0).sum()),
              "padded": int((steps < config.window).sum())}  # fmt: skip
    return {**result, **counts, "covered": covered._asdict(), "covered_text": str(covered), **warning}


def format_description(description: dict[str, Any]) -> str:
    """The summary of `describe` as lines of text."""
    d, ends = description, description["ends"]
    counts = {unit: f"{d[unit]:,}" for unit in ("episodes", "transitions")}
    if d["whole"] is not None:
        counts = {unit: f"{count} of {d['whole'][unit]:,}" for unit, count in counts.items()}
    rows = [
        ("name", f"{d['name']} ({d['source']}{', made locally' if d['made_locally'] else ''})"),
        ("environment", d["environment"] or "not stored"),
        ("episodes", counts["episodes"]),
        ("transitions", f"{counts['transitions']} (observation {d['obs_dim']}, action {d['action_dim']})"),
        ("return", _line(d["returns"])),
        ("score", d["score_label"] if d["scores"] is None else f"{_line(d['scores'])}; {d['score_label']}"),
        ("column", d["score_column"]),
        ("length", _line(d["lengths"])),
        ("ends", f"{ends['terminals']:,} terminals, {ends['timeouts']:,} timeouts, {ends['horizon']:,} at the task's horizon"),
        *_cut(d["cut"], "the timeouts" if d["whole"] is None else "the whole dataset's timeouts"),
        *((key, _line(values)) for key, values in d["ranges"].items()),
        *_learned_reward(d["learned_reward"]),
        *_constant_reward(d["constant_reward"]),
        ("action bounds", f"{_numbers(d['action_low'])} to {_numbers(d['action_high'])}, rescaled to -1 .. 1"),
        *_window_rows(d["windows"]),
    ]  # fmt: skip
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key:<{width}}  {value}".rstrip() for key, value in rows)


def _window_rows(windows: dict[str, Any]) -> list[tuple[str, str]]:
    what = f"{windows['count']:,} of {windows['length']} steps at stride {windows['stride']}"
    padded = f", {windows['padded']:,} padded" if windows["padded"] else ""
    rows = [("windows", f"{what}, {windows['ending_in_terminal']:,} of them ending in a terminal{padded}")]
    if "covered" in windows:
        held_out = f"{windows['validation']:,} more of held-out episodes"
        rows.append(("", f"they cover {windows['covered_text']} of their episodes; {held_out}"))
    return [*rows, ("", windows["note"])] if "note" in windows else rows


def _cut(count: int, among: str) -> list[tuple[str, str]]:
    return [("", f"{count:,} of {among} are cuts where next_observations does not lead to the next row")] if count else []


def _learned_reward(found: dict[str, float] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    sign = "-" if found["shift"] < 0 else "+"
    text = f"learned from as {found['scale']:g} * (reward {sign} {abs(found['shift']):g}): {_line(found)}"
    return [("", f"{text}. All reports are in the units above")]


def _constant_reward(value: float | None) -> list[tuple[str, str]]:
    text = f"rewards are constant: every one is {value or 0:g}, so that no action earns more than another by its reward"
    return [] if value is None else [("", text)]


def _line(spread: dict[str, float]) -> str:
    return "mean {mean:.4g}, std {std:.4g}, min {min:.4g}, max {max:.4g}".format(**spread)


def _numbers(values: list[float]) -> str:
    return "[" + ", ".join(f"{v:g}" for v in values) + "]"
