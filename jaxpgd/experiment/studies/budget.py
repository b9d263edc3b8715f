"""`jaxpgd study --minutes`: lengths of training that end in a given time, from rates measured on this machine.

Every program of the study is compiled first, all at once on the host's cores, with the shapes of the study and initial weights
of its models; then those that take the time run for a chunk, one after the other. The persistent cache keeps the compiled
programs for the study itself.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpgd.errors import InputError, check
from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.directory import make_directory, write_atomic
from jaxpgd.experiment.stages.agents import in_reported_units, joint_data, joint_program, population, seed_policy
from jaxpgd.experiment.stages.models import WORLD_MODEL_KEY, needs, termination_of
from jaxpgd.experiment.stages.parts import Models, Prepared, arm_synthesizer, build_agent, build_experience, stage_key
from jaxpgd.experiment.studies.measures import target_of
from jaxpgd.experiment.studies.plan import Budget, Cell, Study, digest
from jaxpgd.experiment.studies.run import check_unchanged, locked
from jaxpgd.experiment.studies.store import Store
from jaxpgd.experiment.studies.together import groups, joined, swept
from jaxpgd.parallel import Placement
from jaxpgd.synthesis.diffusion import synthesize_from
from jaxpgd.training.denoiser import denoiser_program, trained_denoiser
from jaxpgd.training.program import Program
from jaxpgd.training.world_model import trained_world_model, world_model_program
from jaxpgd.types import Policy, PyTree
from jaxpgd.world_model.data import prepare_transitions

_THREADS = 8  # programs that are compiled at once, at most


@dataclasses.dataclass(frozen=True)
class Rates:
    """Seconds that were measured: of the denoiser's chunks, and of the agents' of all groups of cells together."""

    denoiser: float  # of a chunk
    denoisers: int  # to be trained
    agents: float  # of a chunk of every group
    refreshes: float  # of one refresh of every group
    starts: float  # of every group's first state


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Chunks of training, and the seconds that they are expected to take."""

    denoiser_chunks: int
    agent_chunks: int
    denoiser_seconds: float
    agent_seconds: float


def divide(seconds: float, budget: Budget, rates: Rates, most: Lengths, refresh_chunks: int) -> Lengths:
    """The longest training of at most `most` chunks that fits into `seconds`.

    Agents come first, but for the denoiser's least share; the denoiser gets what they leave. Less than a chunk of either means
    that there is too little time: its number is then 0.
    """

    def agents(chunks: int) -> float:
        refreshes = (chunks - 1) // refresh_chunks if refresh_chunks and chunks else 0
        return rates.starts + chunks * rates.agents + refreshes * rates.refreshes

    share = 1.0 - budget.denoiser if most.denoiser_chunks else 1.0
    low, high = 0, most.agent_chunks
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if agents(middle) <= share * seconds else (low, middle - 1)
    left = max(0.0, seconds - agents(low))
    each = rates.denoisers * rates.denoiser
    chunks = min(most.denoiser_chunks, int(left / each)) if each else 0
    return Lengths(chunks, low, chunks * each, agents(low))


def fit_to_minutes(study: Study, out: Path, minutes: float, fitted: Callable[[dict[str, Any]], Study]) -> Study:
    """The study `fitted` with `denoiser.steps` and `agent.updates` at which it ends within `minutes`, compilation included.

    What was chosen is kept in `out` and taken again by the same command on the same kind of device. Raises InputError for a
    study without a budget, and where the time is too short for a chunk of each, and for one after a refresh where agents are
    guided from the first refresh on.
    """
    began = time.monotonic()
    check(math.isfinite(minutes) and minutes > 0, "--minutes", minutes, "a number above 0")
    check(study.budget is not None, "--minutes", minutes, f"a study with a [budget], which {study.name} has not")
    assert study.budget is not None
    out = Path(out).resolve()
    make_directory(out)
    device = jax.devices()[0].device_kind
    told = digest([study.toml, study.scale, [cell.key for cell in study.cells], minutes, device])
    path = out / f"budget-{study.name}-{told}.json"
    with locked(out):
        check_unchanged(study, out / "data.json")
        if path.exists():
            plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
            print(f"planned before, in {path}:", flush=True)
            found = fitted(plan["settings"])
        else:
            plan = _measured(study, Store(out / "models"), minutes, began)
            found = fitted(plan["settings"])
            write_atomic(path, json.dumps(plan, indent=1))
    print(plan["text"], flush=True)
    return dataclasses.replace(found, plan=plan["text"])


def _measured(study: Study, store: Store, minutes: float, began: float) -> dict[str, Any]:
    """Compile, time, divide."""
    assert study.budget is not None
    work = Workload(study, store)
    print(f"{study.title}: compiling {len(work.tasks)} programs and timing them", flush=True)
    last = began + 60.0 * minutes * (1.0 - study.budget.reserve)
    rates = work.rates(last)
    spent, seconds = time.monotonic() - began, last - time.monotonic()
    config = work.config
    every, chunk = config.denoiser.validate_every, config.agent.updates_per_chunk
    most = Lengths(config.denoiser.steps // every if work.denoisers else 0, config.agent.updates // chunk, 0.0, 0.0)
    refresh_chunks = config.synthesis.interval // chunk if config.synthesis.regime != "oneoff" else 0
    found = divide(seconds, study.budget, rates, most, refresh_chunks)
    fewest = refresh_chunks + 1 if work.guided and refresh_chunks else 1  # nothing would be guided before
    enough = found.agent_chunks >= fewest and (found.denoiser_chunks > 0 or not work.denoisers)
    agents = rates.starts + fewest * rates.agents + (fewest > 1) * rates.refreshes
    needed = max(agents / (1.0 - study.budget.denoiser * bool(work.denoisers)), agents + rates.denoisers * rates.denoiser)
    least = 1.1 * (spent + needed) / (1.0 - study.budget.reserve) / 60.0
    if not enough:
        raise InputError(
            f"--minutes = {minutes:g}: expected at least {least:.2g}; compilation and timing took {spent / 60:.2g} of them."
        )
    steps, updates = found.denoiser_chunks * every, found.agent_chunks * chunk
    settings: dict[str, Any] = {"agent": {"updates": updates}} | ({"denoiser": {"steps": steps}} if work.denoisers else {})
    text = (
        f"plan for {minutes:g} minutes: compilation and timing took {spent:.0f} s; denoiser {steps} of "
        f"{most.denoiser_chunks * every} steps, about {found.denoiser_seconds:.0f} s; agents {updates} of "
        f"{most.agent_chunks * chunk} updates in {len(work.agents)} programs, about {found.agent_seconds:.0f} s; the rest "
        f"{60 * minutes * study.budget.reserve:.0f} s"
    )
    return {"settings": settings, "text": text, "rates": dataclasses.asdict(rates), "seconds": spent}


class Timed:
    """A program of the study with data of its shapes: compiled, then run for as long as it takes to time it."""

    def __init__(self, program: Program[Any], data: PyTree, key: jax.Array) -> None:
        self.placement = Placement(program.seeds)
        self.key, self.data = key, self.placement.replicate(data)
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
        self.denoisers = len({store.lender(config, "denoiser").out for config in with_denoiser})
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
        needed = _distinct(store.lender(config, "world-model") for config in used if needs(config, "world-model"))
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
        prepared = self.store.prepared(self.store.lender(config, "denoiser"))
        program = denoiser_program(prepared.windows, config.denoiser, skip=config.health.skip_updates > 0)
        return Timed(program, prepared.windows, stage_key(config, "denoiser"))

    def _agents(self, cells: Sequence[Cell]) -> Timed:
        config = joined(cells) if len({cell.config.arms for cell in cells}) > 1 else swept(cells)
        prepared = self.store.prepared(config)
        models, agent = self._models(config, prepared), build_agent(config, prepared.dataset)
        key = stage_key(config, "agent")
        if len(config.arms) > 1:
            joint = in_reported_units(joint_program(config, agent), prepared.dataset.info)
            return Timed(joint, joint_data(config, prepared, models), key)
        data = build_experience(config, prepared.dataset, models, config.arms[0])
        return Timed(in_reported_units(population(config, agent, config.arms[0]), prepared.dataset.info), data, key)

    def _target(self, config: Config) -> Timed:
        dataset = self.store.prepared(config).dataset
        program = in_reported_units(population(config, build_agent(config, dataset), "real"), dataset.info)
        return Timed(program, build_experience(config, dataset, Models(), "real"), stage_key(config, "agent"))

    def _world_model(self, config: Config) -> Timed:
        dataset = self.store.prepared(config).dataset
        data = prepare_transitions(dataset.transitions(), config.world_model, seed=config.seed)
        rule = termination_of(config, dataset.info)
        return Timed(world_model_program(data, config.world_model, rule), data, stage_key(config, WORLD_MODEL_KEY))

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
            program = denoiser_program(prepared.windows, config.denoiser)
            state = self._initial(self.store.lender(config, "denoiser"), program, prepared.windows)
            models = models.replace(denoiser=trained_denoiser(state, prepared.windows, config.denoiser))  # type: ignore[attr-defined]
        if needs(config, "world-model"):
            dataset = prepared.dataset
            data = prepare_transitions(dataset.transitions(), config.world_model, seed=config.seed)
            rule = termination_of(config, dataset.info)
            state = self._initial(
                self.store.lender(config, "world-model"), world_model_program(data, config.world_model, rule), data
            )
            models = models.replace(world=trained_world_model(state, data, config.world_model, rule))  # type: ignore[attr-defined]
        return models

    def _initial(self, lender: Config, program: Program[Any], data: PyTree) -> PyTree:
        """The first state of a model's program, once for all cells that share the model."""
        if lender.out not in self._untrained:
            self._untrained[lender.out] = _as_restored(Placement(program.seeds).init(program.init)(jax.random.key(0), data))
        return self._untrained[lender.out]


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
