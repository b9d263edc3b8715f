"""The stage that scores synthetic trajectories: unguided, and guided at several coefficients towards one target policy."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.dataset import in_own_units, state_entries
from jaxpgd.diffusion.edm import karras_sigmas
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.directory import RunDirectory
from jaxpgd.experiment.run.memory import fitting
from jaxpgd.experiment.run.progress import StageProgress
from jaxpgd.experiment.stages.agents import seed_policy
from jaxpgd.experiment.stages.calibration import scored
from jaxpgd.experiment.stages.parts import (
    Models,
    Prepared,
    arm_synthesizer,
    build_synthesizer,
    known_behaviour,
    known_target,
    stage_key,
)
from jaxpgd.experiment.stages.truth import known_truth
from jaxpgd.files import new_file
from jaxpgd.guidance.kinds import guidance_profile, make_guidance
from jaxpgd.metrics.distances import coverage, sliced_wasserstein
from jaxpgd.metrics.dynamics_error import (
    action_log_likelihood,
    dynamics_error,
    steps_taken,
    terminal_rate,
)
from jaxpgd.simulators.resimulation import has_simulator, make_simulator
from jaxpgd.synthesis.diffusion import TrajectoryDenoiser, synthesize, synthesize_from
from jaxpgd.synthesis.replay import sample_real
from jaxpgd.tokens import saturated
from jaxpgd.training.denoiser import Windows
from jaxpgd.types import Policy, Synthesizer, Trajectory

COVERAGE_NEIGHBOURS = 5
_PROFILE_LEVELS, _PROFILE_SAMPLES = 16, 64


def target_policy(prepared: Prepared, policies: dict[str, Policy]) -> tuple[Policy, str]:
    """The policy that scored trajectories are guided towards, and what it is."""
    known = known_target(prepared.dataset)
    if known is not None:
        return known, "the environment's target policy"
    arms = {row.split(",")[0]: row for row in reversed(policies)}  # of a sweep the first setting
    row = next((arms[arm] for arm in ("guided", "dydiff", "world_model") if arm in arms), next(iter(policies)))
    name, _, setting = row.partition(", ")
    return seed_policy(policies[row], 0), f"seed 0 of the {name} arm" + (f" ({setting})" if setting else "")


def check_scoring(config: Config, prepared: Prepared) -> None:
    """Raise, before compute, what making the simulator raises that scores synthetic trajectories at the end."""
    info = prepared.dataset.info
    if any(arm != "real" for arm in config.arms) and has_simulator(info):
        make_simulator(info)


def score_trajectories(
    trajectory: Trajectory,
    policy: Policy | None,
    prepared: Prepared,
    real: np.ndarray | None,
    key: Array,
    behaviour: Policy | None = None,
) -> dict[str, Any]:
    """Quality of N trajectories; `real` [M, T * D] are held-out windows as flat normalised tokens (None: no distances).

    Rewards of the trajectories are as learned, errors of rewards in the dataset's own units. Actions are scored under the
    target `policy` and under the `behaviour` policy where these are known.
    """
    windows, info = prepared.windows, prepared.dataset.info
    tokens = flat_tokens(windows, trajectory)
    row: dict[str, Any] = {}
    if policy is not None:
        row["log_likelihood"], row["log_likelihood_se"], _ = action_log_likelihood(policy, trajectory)
    row |= {
        "terminal_rate": terminal_rate(trajectory),
        "saturated_actions": float(np.asarray(saturated(trajectory.action))[steps_taken(trajectory)].mean()),
    }
    if real is not None and tokens.shape[1] == real.shape[1]:
        row |= _distances(key, tokens, real)
        if min(len(real), len(tokens)) > COVERAGE_NEIGHBOURS:
            row |= coverage(key, real, tokens, k=COVERAGE_NEIGHBOURS)
            states = [_states(windows, x) for x in (real, tokens)]
            row["state_coverage"] = coverage(key, *states, k=COVERAGE_NEIGHBOURS)["coverage"]
    if behaviour is not None:
        row["behaviour_log_likelihood"], row["behaviour_log_likelihood_se"], _ = action_log_likelihood(behaviour, trajectory)
    if has_simulator(info):
        std = np.asarray(windows.unit.std[windows.unit.obs])
        error = dynamics_error(in_own_units(info, trajectory), make_simulator(info).step, std, state_entries(info))
        row |= {
            "dynamics_error": error["rms"],
            "dynamics_error_se": error["standard_error"],
            "dynamics_error_by_step": error["by_step"],
            "persistence_error": error["persistence"],
            "reward_error": error["reward_rms"],
            "surviving_reward_error": error["surviving_reward_rms"],
            "terminal_agreement": error["terminal_agreement"],
        }
    return row


def real_windows(windows: Windows, starts: np.ndarray) -> Trajectory:
    """Windows [N, T] of the dataset as a host trajectory."""
    return jax.tree.map(np.asarray, jax.vmap(windows.gather)(jnp.asarray(starts)))


def window_terminal_rate(windows: Windows) -> float:
    """Share of training windows that end in a terminal."""
    ends = windows.ends(windows.train)
    steps = windows.length if ends is None else ends.steps
    return float((windows.transitions.discount[windows.train + steps - 1] == 0).mean())


def flat_tokens(windows: Windows, trajectory: Trajectory) -> np.ndarray:
    """Normalised tokens [N, T * D] of trajectories [N, T]."""
    tokens = np.asarray(windows.unit.encode(trajectory))
    return tokens.reshape(len(tokens), tokens.shape[1] * tokens.shape[2])


def _states(windows: Windows, tokens: np.ndarray) -> np.ndarray:
    """The states [N, T * O] of flat tokens."""
    steps = tokens.reshape(len(tokens), -1, windows.unit.token_dim)
    return np.ascontiguousarray(steps[..., windows.unit.obs]).reshape(len(tokens), -1)


def reference_distances(windows: Windows, key: Array, count: int) -> dict[str, Any]:
    """What real windows measure among themselves: two disjoint random halves, and training against held-out windows.

    Of a single training window there are no halves.
    """
    rng = np.random.default_rng(0)
    train = rng.permutation(np.asarray(windows.train))
    size = min(count, len(train) // 2)
    halves = [flat_tokens(windows, real_windows(windows, part)) for part in (train[:size], train[size : 2 * size])]
    held_out = flat_tokens(windows, real_windows(windows, rng.permutation(np.asarray(windows.validation))[:count]))
    if size == 0:
        return {"halves": {}, "held_out": {}, "windows": 0}
    return {
        "halves": _distances(key, halves[0], halves[1]),
        "held_out": _distances(key, halves[0], held_out),
        "windows": size,
    }


def _distances(key: Array, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Both orders: the first is steadier, the second gives weight to rare windows such as those with a terminal."""
    return {f"sliced_wasserstein_{order}": sliced_wasserstein(key, x, y, order=order) for order in (1, 2)}


@fitting
def quality_stage(run: RunDirectory, prepared: Prepared, models: Models, policies: dict[str, Policy]) -> dict[str, Any]:
    """Score the trajectories of every synthesizer; writes quality.json and samples.npz.

    Those of the trajectory denoiser are scored unguided and guided over the coefficients of the config (`rows`), those of the
    other arms once, for the same target policy (`arms`).
    """
    if run.is_done("quality"):
        stored: dict[str, Any] = run.read_json("quality.json")
        return stored
    began, config, windows = time.monotonic(), scored(run), prepared.windows
    # The same noise at every coefficient: rows differ by the guidance alone. Each other use has a key of its own.
    key, key_truth, key_scores = jax.random.split(stage_key(config, "quality"), 3)
    policy, target = target_policy(prepared, policies)
    behaviour = known_behaviour(config, prepared.dataset)
    rng = np.random.default_rng(config.seed)
    held_out = rng.permutation(np.asarray(windows.validation))[: config.evaluation.trajectories]
    real = real_windows(windows, held_out)
    flat = flat_tokens(windows, real)
    denoiser = models.denoiser
    coefficients = [] if denoiser is None else sorted({0.0, config.guidance.coefficient, *config.evaluation.coefficients})
    others = [arm for arm in config.arms if arm not in ("real", "unguided", "guided")]
    truth = known_truth(prepared.dataset, policy, coefficients[1:], key_truth) if len(coefficients) > 1 else None
    samples: dict[str, Trajectory] = {"real": real}
    result: dict[str, Any] = {
        "target": target,
        "chosen": config.guidance.coefficient,
        "reference": reference_distances(windows, key_scores, len(held_out)),
        "training_terminal_rate": window_terminal_rate(windows),
        "real": score_trajectories(real, policy, prepared, None, key_scores, behaviour),
        "rows": [],
        "arms": {},
    }
    with StageProgress("quality", len(coefficients) + len(others), "synthesizers") as progress:
        for coefficient in coefficients:
            assert denoiser is not None
            made = _sample(key, config, denoiser, policy, coefficient)
            row = {"coefficient": coefficient, **score_trajectories(made, policy, prepared, flat, key_scores, behaviour)}
            if coefficient in (0.0, config.guidance.coefficient):
                samples["unguided" if coefficient == 0 else "guided"] = made
            if truth is not None:
                row |= truth.compared(key_scores, windows, made, samples["unguided"], coefficient)
            result["rows"].append(row)
            progress.advance(1)
        for arm in others:
            made = _rollouts(key, config, prepared, arm_synthesizer(config, models, arm), policy)
            result["arms"][arm] = score_trajectories(made, policy, prepared, flat, key_scores, behaviour)
            samples[arm] = made
            progress.advance(1)
    if truth is not None:
        result["truth"] = truth.summary()
    if denoiser is not None and config.guidance.kind != "published":
        whole = slice(None) if denoiser.ends is None else steps_taken(samples["unguided"])[:, -1]  # without padding
        made = jax.tree.map(lambda x: x[whole], samples["unguided"])
        if len(made.reward):
            result["profile"] = _profile(key_scores, config, denoiser, policy, windows, made)
    run.write_json("quality.json", result)
    _save_samples(run, {name: in_own_units(prepared.dataset.info, t) for name, t in samples.items()})
    run.finish("quality", {"seconds": time.monotonic() - began})
    return run.read_json("quality.json")  # type: ignore[no-any-return]


def _sample(key: Array, config: Config, denoiser: TrajectoryDenoiser, policy: Policy, coefficient: float) -> Trajectory:
    guided = coefficient > 0
    synthesizer = build_synthesizer(config, denoiser, guided=guided, steps=config.evaluation.sampler_steps)
    if guided:
        synthesizer = synthesizer.with_coefficient(jnp.asarray(coefficient))
    made = synthesize(key, synthesizer, policy if guided else None, count=config.evaluation.trajectories)
    return jax.tree.map(np.asarray, made)


def _profile(
    key: Array, config: Config, denoiser: TrajectoryDenoiser, policy: Policy, windows: Windows, made: Trajectory
) -> dict[str, Any]:
    """Strength of guidance and score by noise level, at the chosen coefficient, around unguided samples."""
    guidance = make_guidance(config.guidance)
    sampler = config.sampler
    sigmas = karras_sigmas(_PROFILE_LEVELS, sampler.sigma_min, sampler.sigma_max, sampler.rho)[:-1]
    tokens = windows.codec.encode(jax.tree.map(lambda x: jnp.asarray(x[:_PROFILE_SAMPLES]), made))
    guided = guidance.guided(denoiser.denoise, policy, windows.codec)
    found = jax.jit(guidance_profile)(key, guided, tokens, sigmas)
    return {"sigma": np.asarray(sigmas), **jax.tree.map(np.asarray, found)}


def _rollouts(key: Array, config: Config, prepared: Prepared, synthesizer: Synthesizer, policy: Policy) -> Trajectory:
    """Trajectories of a synthesizer from observations of the dataset."""
    key_start, key_sample = jax.random.split(key)
    start = sample_real(key_start, prepared.dataset.transitions(), config.evaluation.trajectories).obs
    return jax.tree.map(np.asarray, synthesize_from(key_sample, synthesizer, policy, start))


def _save_samples(run: RunDirectory, samples: dict[str, Trajectory]) -> None:
    fields = ("obs", "action", "reward", "discount", "mask", "last_obs")
    arrays = {f"{name}_{field}": getattr(t, field) for name, t in samples.items() for field in fields}
    arrays = {name: values for name, values in arrays.items() if values is not None}
    with new_file(run.path / "samples.npz") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
