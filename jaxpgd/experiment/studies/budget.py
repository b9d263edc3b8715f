"""`jaxpgd study --minutes`: lengths of training that end in a given time, from rates measured on this machine.

Every program of the study is compiled first, all at once on the host's cores, with the shapes of the study and initial weights
of its models; then those that take the time run for a chunk, one after the other. The persistent cache keeps the compiled
programs for the study itself.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxpgd.errors import InputError, check
from jaxpgd.experiment.run.directory import make_directory, write_atomic
from jaxpgd.experiment.run.lock import locked
from jaxpgd.experiment.studies.identity import short_hash
from jaxpgd.experiment.studies.plan import Budget, Study
from jaxpgd.experiment.studies.run import check_unchanged
from jaxpgd.experiment.studies.store import Store
from jaxpgd.experiment.studies.workload import Rates, Workload


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
    told = short_hash([study.toml, study.scale, [cell.key for cell in study.cells], minutes, device])
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
