"""Score: the synthetic trajectories of a run, unguided, guided at several coefficients, and of the other arms."""

import dataclasses
import time
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxpgd.dataset import in_own_units
from jaxpgd.diffusion.edm import karras_sigmas
from jaxpgd.diffusion.solvers import noise_levels
from jaxpgd.errors import check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.needs import corrects
from jaxpgd.experiment.run.directory import ClaimedRun
from jaxpgd.experiment.run.out_of_memory import with_half_the_batch
from jaxpgd.experiment.run.progress import StageProgress
from jaxpgd.experiment.stages.agent_config import scoring_config
from jaxpgd.experiment.stages.build import Models, arm_synthesizer, build_synthesizer
from jaxpgd.experiment.stages.importance_truth import known_truth
from jaxpgd.experiment.stages.known_policies import known_behaviour, known_target
from jaxpgd.experiment.stages.load import seed_policy
from jaxpgd.experiment.stages.prepare import Prepared, stage_key
from jaxpgd.experiment.stages.score_trajectories import (
    flat_tokens,
    real_windows,
    reference_distances,
    score_trajectories,
    told_from_training,
    window_terminal_rate,
)
from jaxpgd.files import new_file
from jaxpgd.guidance.base import Guided
from jaxpgd.guidance.diagnostics import guidance_profile
from jaxpgd.guidance.kinds import make_guidance
from jaxpgd.metrics.dynamics_error import steps_taken
from jaxpgd.metrics.two_sample import FOLDS
from jaxpgd.simulators.resimulation import has_simulator, make_simulator
from jaxpgd.synthesis.diffusion import TrajectoryDenoiser, synthesize, synthesize_from
from jaxpgd.synthesis.given import Given, GivenAnchor, GivenInnovations
from jaxpgd.synthesis.replay import sample_real
from jaxpgd.training.windows import Windows
from jaxpgd.types import Policy, Synthesizer, Trajectory
from jaxpgd.world_model.truncation import truncation

_PROFILE_LEVELS, _PROFILE_SAMPLES = 16, 64


def check_scoring(config: Config, prepared: Prepared) -> None:
    """Raise, before compute, what scoring synthetic trajectories would raise at the end: no simulator, too few to classify."""
    info, windows = prepared.dataset.info, prepared.windows
    if config.evaluation.classifier:
        rows = min(config.evaluation.trajectories, len(windows.validation), len(windows.train))
        check(rows >= FOLDS, "evaluation.classifier", True,
              f"false with fewer than {FOLDS} trajectories, held-out windows or training windows")  # fmt: skip
    if any(arm != "real" for arm in config.arms) and has_simulator(info):
        make_simulator(info)


def score_synthesizers(run: ClaimedRun, prepared: Prepared, models: Models, policies: dict[str, Policy]) -> dict[str, Any]:
    """Score the trajectories of every synthesizer; writes `quality.json` and `samples.npz`. A finished stage is only read.

    Those of the trajectory denoiser are scored unguided and guided over the coefficients of the config (`rows`), those of the
    other arms once, for the same target policy (`arms`).
    """
    if run.is_done("quality"):
        stored: dict[str, Any] = run.read_json("quality.json")
        return stored
    began = time.monotonic()
    work = lambda config: _scores(config, prepared, models, policies)
    result, samples = with_half_the_batch(run, scoring_config(run), "score synthesizers", work)
    run.write_json("quality.json", result)
    _save_samples(run, {name: in_own_units(prepared.dataset.info, t) for name, t in samples.items()})
    run.finish("quality", {"seconds": time.monotonic() - began})
    return run.read_json("quality.json")  # type: ignore[no-any-return]


def _scores(
    config: Config, prepared: Prepared, models: Models, policies: dict[str, Policy]
) -> tuple[dict[str, Any], dict[str, Trajectory]]:
    """What `score_synthesizers` writes, and the trajectories by name, as learned."""
    windows, denoiser = prepared.windows, models.denoiser
    # The same noise at every coefficient: rows differ by the guidance alone. Each other use has a key of its own.
    key, key_truth, key_scores = jax.random.split(stage_key(config, "quality"), 3)
    policy, target = target_policy(prepared, policies)
    behaviour = known_behaviour(config, prepared.dataset)
    held_out = np.random.default_rng(config.seed).permutation(np.asarray(windows.validation))[: config.evaluation.trajectories]
    real = real_windows(windows, held_out)
    flat = flat_tokens(windows, real)
    in_order = real_windows(windows, np.sort(held_out)) if config.evaluation.classifier else None
    score = lambda synthetic: score_trajectories(synthetic, policy, prepared, flat, key_scores, behaviour, in_order)
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
    if in_order is not None:
        result["real"] |= told_from_training(key_scores, windows, in_order)
    with StageProgress("quality", len(coefficients) + len(others), "synthesizers") as progress:
        for coefficient in coefficients:
            assert denoiser is not None
            synthetic = _from_denoiser(key, config, models, policy, coefficient)
            row = {"coefficient": coefficient, **score(synthetic)}
            if coefficient in (0.0, config.guidance.coefficient):
                samples["unguided" if coefficient == 0 else "guided"] = synthetic
            if truth is not None:
                row |= truth.compared(key_scores, windows, synthetic, samples["unguided"], coefficient)
            result["rows"].append(row)
            progress.advance(1)
        for arm in others:
            samples[arm] = _rollouts(key, config, prepared, arm_synthesizer(config, models, arm), policy)
            result["arms"][arm] = score(samples[arm]) | _left_of_rollouts(config, arm, samples[arm])
            progress.advance(1)
    if corrects(config):
        without = score(_from_denoiser(key, _uncorrected(config), models, policy, 0.0))
        result["correction"] = _corrected_levels(config) | {"without": without}
    if models.states is not None and models.states.given is not None:
        result["innovations"] = _innovations(models.states.entries)
    if truth is not None:
        result["truth"] = truth.summary()
    if denoiser is not None and config.guidance.kind != "published":
        unpadded = slice(None) if denoiser.ends is None else steps_taken(samples["unguided"])[:, -1]
        synthetic = jax.tree.map(lambda x: x[unpadded], samples["unguided"])
        if len(synthetic.reward):
            result["profile"] = _profile(key_scores, config, denoiser, policy, windows, synthetic)
    return result, samples


def _left_of_rollouts(config: Config, arm: str, trajectory: Trajectory) -> dict[str, float]:
    """How many rollouts were cut, and their mean number of valid steps; nothing of arms that cut none."""
    if arm != "world_model" or config.synthesis.world_model.truncate == 0:
        return {}
    left = truncation(trajectory)
    return {"truncated_rate": float(left["truncated"]), "valid_steps": float(left["length"])}


def target_policy(prepared: Prepared, policies: dict[str, Policy]) -> tuple[Policy, str]:
    """The policy that scored trajectories are guided towards, and what it is."""
    known = known_target(prepared.dataset)
    if known is not None:
        return known, "the environment's target policy"
    arms = {row.split(",")[0]: row for row in reversed(policies)}  # of a sweep the first setting
    row = next((arms[arm] for arm in ("guided", "dydiff", "world_model") if arm in arms), next(iter(policies)))
    name, _, setting = row.partition(", ")
    return seed_policy(policies[row], 0), f"seed 0 of the {name} arm" + (f" ({setting})" if setting else "")


def _innovations(given: Given) -> dict[str, Any]:
    """How much innovations depend on states (R^2 by entry of the action), and how far anchors leave the data."""
    own = given.innovations if isinstance(given, GivenAnchor) else given
    assert isinstance(own, GivenInnovations)
    found = {name: np.asarray(getattr(own.behaviour, name)).tolist() for name in ("explained", "explained_square")}
    return found | ({"anchors_clipped": float(given.clipped)} if isinstance(given, GivenAnchor) else {})


def _corrected_levels(config: Config) -> dict[str, int]:
    sampler = dataclasses.replace(config.sampler, steps=config.evaluation.sampler_steps or config.sampler.steps)
    levels = noise_levels(sampler)
    return {"levels": len(levels), "corrected": sum(sigma <= config.synthesis.consistency.sigma_max for sigma in levels)}


def _uncorrected(config: Config) -> Config:
    """The config without dynamics-consistent denoising."""
    plain = dataclasses.replace(config.synthesis.consistency, kind="none")
    return dataclasses.replace(config, synthesis=dataclasses.replace(config.synthesis, consistency=plain))


def _from_denoiser(key: Array, config: Config, models: Models, policy: Policy, coefficient: float) -> Trajectory:
    guided = coefficient > 0
    synthesizer = build_synthesizer(config, models, guided=guided, steps=config.evaluation.sampler_steps)
    if guided:
        synthesizer = synthesizer.with_coefficient(jnp.asarray(coefficient))
    synthetic = synthesize(key, synthesizer, policy if guided else None, count=config.evaluation.trajectories)
    return jax.tree.map(np.asarray, synthetic)


def _profile(
    key: Array, config: Config, denoiser: TrajectoryDenoiser, policy: Policy, windows: Windows, synthetic: Trajectory
) -> dict[str, Any]:
    """Strength of guidance and score by noise level, at the chosen coefficient, around unguided samples."""
    guidance = make_guidance(config.guidance)
    sampler = config.sampler
    sigmas = karras_sigmas(_PROFILE_LEVELS, sampler.sigma_min, sampler.sigma_max, sampler.rho)[:-1]
    tokens = windows.codec.encode(jax.tree.map(lambda x: jnp.asarray(x[:_PROFILE_SAMPLES]), synthetic))
    coefficient = jnp.asarray(config.guidance.coefficient, jnp.float32)
    guided, _ = guidance.attach(denoiser.denoise, policy, windows.codec, coefficient)
    found = jax.jit(guidance_profile)(key, cast(Guided, guided), tokens, sigmas)
    return {"sigma": np.asarray(sigmas), **jax.tree.map(np.asarray, found)}


def _rollouts(key: Array, config: Config, prepared: Prepared, synthesizer: Synthesizer, policy: Policy) -> Trajectory:
    """Trajectories of a synthesizer from observations of the dataset."""
    key_start, key_sample = jax.random.split(key)
    start = sample_real(key_start, prepared.dataset.transitions(), config.evaluation.trajectories).obs
    return jax.tree.map(np.asarray, synthesize_from(key_sample, synthesizer, policy, start))


def _save_samples(run: ClaimedRun, samples: dict[str, Trajectory]) -> None:
    fields = ("obs", "action", "reward", "discount", "mask", "last_obs")
    arrays = {f"{name}_{field}": getattr(t, field) for name, t in samples.items() for field in fields}
    arrays = {name: values for name, values in arrays.items() if values is not None}
    with new_file(run.path / "samples.npz") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
