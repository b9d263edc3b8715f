"""Train: the agents of a run, of one arm or of all arms as one program. `load` reads what they leave, without training."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxpgd.errors import check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.directory import ClaimedRun
from jaxpgd.experiment.run.driver import BeforeChunk, drive
from jaxpgd.experiment.run.out_of_memory import with_half_the_batch
from jaxpgd.experiment.run.progress import evaluation_progress
from jaxpgd.experiment.run.resolved import BATCH_SIZE, COEFFICIENT
from jaxpgd.experiment.stages.agent_programs import Learned, agent_training, by_arm, joint_training
from jaxpgd.experiment.stages.build import Models
from jaxpgd.experiment.stages.choose_coefficient import choose_coefficient
from jaxpgd.experiment.stages.explain_returns import discount_of, explain
from jaxpgd.experiment.stages.model_programs import Training
from jaxpgd.experiment.stages.prepare import Prepared, stage_key
from jaxpgd.parallel import broadcast
from jaxpgd.simulators.returns import evaluate
from jaxpgd.synthesis.diffusion import DiffusionSynthesizer
from jaxpgd.training.agent import AgentState, make_schedule
from jaxpgd.training.experience import Experience
from jaxpgd.training.health import LOST


def train_agents(run: ClaimedRun, prepared: Prepared, models: Models, arm: str) -> Learned:
    """Train the agents of an arm, all settings and seeds at once; a finished stage is only read.

    Returns their policies and values, with a leading axis [settings * seeds], the seeds of a setting together.
    """

    def work(config: Config) -> Learned:
        training = agent_training(config, prepared, models, arm)
        chooses = arm == "guided" and config.guidance.max_dynamics_error > 0
        return _train(run, prepared, training, _choosing(run, prepared, training) if chooses else None)

    return with_half_the_batch(run, run.effective((BATCH_SIZE,)), "train agents", work)


def train_joint_agents(run: ClaimedRun, prepared: Prepared, models: Models) -> dict[str, Learned]:
    """Train the agents of all arms of a run as one program; their policies and values [seeds] by arm.

    Raises InputError where the run sweeps over settings, or where the dynamics error chooses coefficients.
    """
    check(not run.config.sweep, "sweep", list(run.config.sweep), "nothing where all arms are one program")
    times = run.config.guidance.max_dynamics_error
    check(times == 0, "guidance.max_dynamics_error", times, "0 where all arms are one program")

    def work(config: Config) -> dict[str, Learned]:
        return by_arm(config, _train(run, prepared, joint_training(config, prepared, models)))

    return with_half_the_batch(run, run.effective((BATCH_SIZE,)), "train joint agents", work)


def _choosing(run: ClaimedRun, prepared: Prepared, training: Training[Learned]) -> BeforeChunk:
    """Before each refresh of the guided arm: the coefficient that the dynamics error allows, decided and logged."""
    config = run.config
    schedule = make_schedule(config.agent, config.synthesis)
    most, times = config.guidance.coefficient, config.guidance.max_dynamics_error

    def choose(done: int, state: Callable[[], AgentState], data: Experience) -> tuple[Experience, dict[str, Any]]:
        if not schedule.due(done):
            return data, {}
        key = jax.random.fold_in(stage_key(config, "calibration"), done)
        synthesizer = cast(DiffusionSynthesizer, data.synthesizer)
        coefficient, row = choose_coefficient(key, synthesizer, training.trained(state()).policy, prepared, most, times)
        coefficient = broadcast(coefficient)
        why = f"the largest up to {most:g} whose dynamics error is within {times:g} times the unguided one, at the last refresh"
        run.decide(COEFFICIENT, coefficient, why)
        fixed = synthesizer.with_coefficient(jnp.asarray(coefficient, jnp.float32))
        return data.replace(synthesizer=fixed), row  # type: ignore[attr-defined]

    return choose


def _train(
    run: ClaimedRun, prepared: Prepared, training: Training[Learned], before_chunk: BeforeChunk | None = None
) -> Learned:
    """What the agents of a program learn that is run, or resumed, as a stage; evaluated every so many updates."""
    config, info = run.config, prepared.dataset.info

    def after_chunk(done: int, state: Callable[[], AgentState]) -> dict[str, Any]:
        every = config.evaluation.every // config.agent.updates_per_chunk
        if every == 0 or done % every:
            return {}
        key = jax.random.fold_in(stage_key(config, "intermediate"), done)
        learned, own = training.trained(state()), config.evaluation
        label = f"{training.stage}, evaluation at {done * config.agent.updates_per_chunk} updates"
        with evaluation_progress(label) as watch:
            found = evaluate(key, learned.policy, info, episodes=own.intermediate_episodes, gamma=discount_of(learned.value),
                             horizon=own.max_steps or None, processes=own.processes, watch=watch)  # fmt: skip
        return {"returns": found.returns.mean(-1)} | explain(config, prepared, learned.policy, learned.value, found)

    state = drive(
        run, training.stage, training.key, training.program, training.data, unit="updates", note="critic_loss",
        after_chunk=after_chunk, before_chunk=before_chunk, score=_mean_return,
    )  # fmt: skip
    return training.trained(state)


def _mean_return(row: dict[str, Any]) -> float | None:
    """Over seeds, where the chunk ended with an evaluation; seeds that are lost do not count."""
    returns = np.asarray(row.get("returns", ()), np.float64)
    returns = returns[np.isfinite(returns) & ~np.asarray(row.get(LOST, np.zeros(returns.shape, bool)))]
    return float(returns.mean()) if returns.size else None
