"""What a study compiles and what of it is timed, for `jaxpgd study --minutes`: programs with the shapes of the study."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpgd.errors import check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.needs import needs
from jaxpgd.experiment.stages.agent_programs import agent_training, joint_training
from jaxpgd.experiment.stages.batch_size import with_largest_batch
from jaxpgd.experiment.stages.build import Models, arm_synthesizer, build_agent
from jaxpgd.experiment.stages.load import seed_policy
from jaxpgd.experiment.stages.model_programs import Training, denoiser_training, world_model_training
from jaxpgd.experiment.stages.prepare import Prepared
from jaxpgd.experiment.studies.cell import Cell
from jaxpgd.experiment.studies.measures import target_of
from jaxpgd.experiment.studies.plan import Study
from jaxpgd.experiment.studies.store import Store
from jaxpgd.experiment.studies.together import groups, joined, swept
from jaxpgd.parallel import Placement
from jaxpgd.synthesis.diffusion import synthesize_from
from jaxpgd.types import Policy, PyTree

_THREADS = 8  # programs that are compiled at once, at most


@dataclasses.dataclass(frozen=True)
class Rates:
    """Seconds that were measured: of the denoiser's chunks, and of the agents' of all groups of cells together."""

    denoiser: float  # of a chunk
    denoisers: int  # to be trained
    agents: float  # of a chunk of every group
    refreshes: float  # of one refresh of every group
    starts: float  # of every group's first state


class Timed:
    """A program of the study with data of its shapes: compiled, then run for as long as it takes to time it."""

    def __init__(self, training: Training[Any]) -> None:
        program = training.program
        self.placement = Placement(program.seeds)
        self.key, self.data = training.key, self.placement.replicate(training.data)
        self.init, self.step = self.placement.init(program.init), self.placement.step(program.chunk)
        self.state: Any = None

    def compile(self) -> None:
        """Compile both functions; nothing runs."""
        lowered: Any = self.init.lower(self.key, self.data)  # type: ignore[attr-defined]
        lowered.compile()
        self.step.lower(lowered.out_info, self.data, jnp.asarray(0)).compile()  # type: ignore[attr-defined]

    def warm(self) -> float:
        """Run both once; seconds of the first state."""
        jax.block_until_ready(self.init(self.key, self.data))
        began = time.monotonic()
        state = jax.block_until_ready(self.init(self.key, self.data))
        seconds = time.monotonic() - began
        self.state, _ = jax.block_until_ready(self.step(state, self.data, jnp.asarray(0)))
        return seconds

    def chunk(self, index: int) -> float:
        """Seconds of a chunk."""
        began = time.monotonic()
        self.state, _ = jax.block_until_ready(self.step(self.state, self.data, jnp.asarray(index)))
        return time.monotonic() - began

    def free(self) -> None:
        """Give the state's memory back."""
        self.state = None


class Workload:
    """What a study compiles, and what of it is timed."""

    def __init__(self, study: Study, store: Store) -> None:
        self.store = store
        parts = groups(study.cells, joint=study.joint)
        returns = [part for part in parts if part[0].measure.kind == "returns"]
        check(bool(returns), "--minutes", study.name, "a study with cells of kind returns, whose length it sets")
        used = [cell.config for cell in study.cells]
        for config in used:
            check(not needs(config, "state-denoiser"), "--minutes", "dydiff", "arms without a state denoiser")
        with_denoiser = [config for config in used if needs(config, "denoiser")]
        self.denoisers = len({store.run_of_model(config, "denoiser").out for config in with_denoiser})
        self.config = with_denoiser[0] if with_denoiser else used[0]
        _check_alike([part[0].config for part in returns], with_denoiser)
        self._untrained: dict[str, PyTree] = {}
        self.denoiser = self._denoiser(self.config) if with_denoiser else None
        self.agents = [self._agents(part) for part in returns]
        synthetic = [any(cell.config.arms != ("real",) for cell in part) for part in returns]
        self.refreshing = synthetic.index(True) if any(synthetic) else None
        self.refreshed = sum(synthetic)
        first = returns[0][0].config
        self.refresh_chunks = max(1, first.synthesis.interval // first.agent.updates_per_chunk)
        self.guided = any(c.config.arms == ("guided",) and c.config.synthesis.first_unguided for p in returns for c in p)
        self.tasks: list[Callable[[], object]] = [timed.compile for timed in (*filter(None, (self.denoiser,)), *self.agents)]
        self.tasks += [self._target(config).compile for config in _distinct(cell.target.config for cell in study.cells)]
        needed = _distinct(store.run_of_model(config, "world-model") for config in used if needs(config, "world-model"))
        self.tasks += [self._world_model(config).compile for config in needed]
        self.tasks += [self._sampling(cell) for cell in study.cells if cell.measure.kind == "trajectories"]

    def rates(self, last: float) -> Rates:
        """Compile everything, then time what the lengths depend on. Raises InputError once `last` is past."""
        began, pool = time.monotonic(), ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
        try:
            for i, done in enumerate(as_completed([pool.submit(task) for task in self.tasks])):
                done.result()
                seconds = time.monotonic() - began
                print(f"compiled {i + 1} of {len(self.tasks)}, {seconds:.0f} s", flush=True)
                check(time.monotonic() < last, "--minutes", f"{i + 1} of {len(self.tasks)} programs in {seconds:.0f} s",
                      "time for more than compilation")  # fmt: skip
        finally:
            pool.shutdown(cancel_futures=True)
        denoiser = agents = starts = refresh = 0.0
        if self.denoiser is not None:
            self.denoiser.warm()
            denoiser = self.denoiser.chunk(1)
            self.denoiser.free()
        for i, timed in enumerate(self.agents):
            starts += timed.warm()
            agents += (plain := timed.chunk(1))
            if i == self.refreshing:  # refreshes of all groups cost about the same
                refresh = max(0.0, timed.chunk(self.refresh_chunks) - plain)
            timed.free()
        return Rates(denoiser, self.denoisers, agents, self.refreshed * refresh, starts)

    def _denoiser(self, config: Config) -> Timed:
        return Timed(denoiser_training(config, self.store.prepared(self.store.run_of_model(config, "denoiser"))))

    def _agents(self, cells: Sequence[Cell]) -> Timed:
        config = joined(cells) if len({cell.config.arms for cell in cells}) > 1 else swept(cells)
        prepared = self.store.prepared(config)
        models = self._models(config, prepared)
        config = with_largest_batch(config, models)  # as the run decides it
        if len(config.arms) > 1:
            return Timed(joint_training(config, prepared, models))
        return Timed(agent_training(config, prepared, models, config.arms[0]))

    def _target(self, config: Config) -> Timed:
        return Timed(agent_training(config, self.store.prepared(config), Models(), "real"))

    def _world_model(self, config: Config) -> Timed:
        return Timed(world_model_training(config, self.store.prepared(config)))

    def _sampling(self, cell: Cell) -> Callable[[], object]:
        """The program that makes a cell's trajectories."""
        config, source = cell.config, cell.measure.source

        def compile() -> None:
            if source in ("rollouts", "dataset"):
                return
            prepared = self.store.prepared(config)
            policy = self._policy(cell, prepared)
            start = jax.ShapeDtypeStruct((cell.measure.trajectories, prepared.dataset.obs_dim), jnp.float32)
            synthesizer = arm_synthesizer(config, self._models(config, prepared), source)
            synthesize_from.lower(jax.random.key(0), synthesizer, policy, start).compile()

        return compile

    def _policy(self, cell: Cell, prepared: Prepared) -> Policy:
        """The target policy of a cell, untrained where it is an agent."""
        if cell.target.config is None:
            return target_of(cell, self.store, prepared)
        dataset = self.store.prepared(cell.target.config).dataset
        agent, example = (
            build_agent(cell.target.config, dataset),
            jax.tree.map(lambda x: jnp.asarray(x[0]), dataset.transitions()),
        )
        return seed_policy(
            jax.vmap(lambda key: agent.policy(agent.init(key, example)))(jax.random.split(jax.random.key(0), 1)), 0
        )

    def _models(self, config: Config, prepared: Prepared) -> Models:
        """The models of a config with initial weights."""
        models = Models()
        if needs(config, "denoiser"):
            denoiser = self._initial(config, denoiser_training(config, prepared))
            models = models.replace(denoiser=denoiser)  # type: ignore[attr-defined]
        if needs(config, "world-model"):
            models = models.replace(world=self._initial(config, world_model_training(config, prepared)))  # type: ignore[attr-defined]
        return models

    def _initial(self, config: Config, training: Training[Any]) -> Any:
        """A model with initial weights, computed once for all cells that share the model."""
        out, program = self.store.run_of_model(config, training.stage).out, training.program
        if out not in self._untrained:
            self._untrained[out] = _as_restored(Placement(program.seeds).init(program.init)(jax.random.key(0), training.data))
        return training.trained(self._untrained[out])


def _check_alike(configs: Sequence[Config], with_denoiser: Sequence[Config]) -> None:
    """Raise InputError unless one number of updates and one of steps can be set for all cells."""
    for name, found in (
        ("agent.updates_per_chunk", {config.agent.updates_per_chunk for config in configs}),
        ("synthesis.interval", {config.synthesis.interval for config in configs}),
        ("denoiser.validate_every", {config.denoiser.validate_every for config in with_denoiser}),
        ("denoiser.epochs", {config.denoiser.epochs for config in with_denoiser} | {0}),
    ):
        check(len(found) <= 1, f"--minutes: {name}", sorted(found), "one value for all cells" if "epochs" not in name else "0")


def _as_restored(state: PyTree) -> PyTree:
    """A state as a checkpoint gives it back: with no weakly typed number, which makes another program."""
    return jax.tree.map(lambda x: x if _is_key(x) else jnp.asarray(np.asarray(x)), state)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _distinct(configs: Iterable[Config | None]) -> list[Config]:
    return list(dict.fromkeys(config for config in configs if config is not None))
