"""Whether a training stage is sound after each chunk: values that are not finite, lost seeds, skipped updates, critics.

`health` of the config says what is tolerated.
"""

import sys
from typing import Any

import numpy as np

from jaxpgd.errors import DivergenceError
from jaxpgd.experiment.run.view import RunView
from jaxpgd.training.health import LOST, SKIPPED, NonFinite, name_seeds, non_finite
from jaxpgd.training.program import Program


class DivergenceWatch:
    """Judges the chunks of one stage, and remembers which seeds are lost and whose critics diverge."""

    def __init__(self, run: RunView, stage: str, program: Program[Any]) -> None:
        self._run, self._stage, self._program, self._health = run, stage, program, run.config.health
        self._updates = program.updates_per_chunk or program.steps_per_chunk
        self._lost = np.zeros(max(program.seeds, 1), bool)
        self._diverging = self._lost.copy()

    @property
    def lost(self) -> list[int]:
        """The seeds that training goes on without."""
        return [int(i) for i in np.flatnonzero(self._lost)]

    @property
    def diverging(self) -> list[int]:
        """The seeds whose values have left the range that the rewards allow."""
        return [int(i) for i in np.flatnonzero(self._diverging)]

    @property
    def skipped(self) -> list[int]:
        """Updates that each seed has skipped, over all processes that have run this stage."""
        rows = [row[SKIPPED] for row in self._run.log.read() if row.get("stage") == self._stage and SKIPPED in row]
        return [int(n) for n in np.atleast_1d(np.sum(rows, axis=0))] if rows else []

    def recall(self) -> None:
        """Take over what earlier processes of this stage have logged of critics and lost seeds."""
        for row in self._run.log.read():
            if row.get("stage") == self._stage and np.shape(row.get(LOST, 0)) == self._lost.shape:
                self._lost |= np.asarray(row[LOST], bool)
            excess = np.atleast_1d(np.asarray(row.get("value_excess", 0.0), np.float64))
            if row.get("stage") == self._stage and excess.shape == self._diverging.shape:
                self._diverging |= excess > self._health.value_excess

    def judge(self, is_finite: dict[str, Any], done: int, row: dict[str, Any], first: dict[str, Any]) -> None:
        """Raise DivergenceError where the chunk that ended as number `done` is not sound, naming its first bad quantity.

        `is_finite` says so of the parts of the state by name, `first` in which step each metric first was not finite. Lost
        seeds are added to `row`. Where the others may go on (`health.lost_seeds`), a warning names those that are newly lost.
        """
        found = non_finite(is_finite, row, first, self._updates, done * self._updates, self._lost)
        found += self._skipped_too_many(row, done)
        if found:
            new = np.any([each.seeds for each in found], axis=0)
            what = f"stage {self._stage!r} of {self._run.path}: {found[0].what}"
            of = f" ({self._named(new)})" if self._program.seeds else ""
            self._lost |= new
            if self._lost.all() or self._health.lost_seeds == "stop":
                raise DivergenceError(what + of)
            print(f"warning: {what}{of}", file=sys.stderr, flush=True)
        if self._lost.any():
            row[LOST] = self._lost.copy()
        self._warn_of_critics(row)

    def _skipped_too_many(self, row: dict[str, Any], done: int) -> list[NonFinite]:
        most, skipped = self._health.skip_updates, np.atleast_1d(np.asarray(row.get(SKIPPED, 0.0)))
        over = ((skipped > most) | (skipped >= self._updates)) & ~self._lost
        if most == 0 or not over.any():
            return []
        end, count = done * self._program.steps_per_chunk, int(skipped[over].max())
        limit = "which are all that it has" if count >= self._updates else f"more than health.skip_updates = {most}"
        what = f"{count} updates were not finite in the chunk that ends at step {end}, {limit}"
        return [NonFinite(what, over, (self._updates, 2, 0))]

    def _warn_of_critics(self, row: dict[str, Any]) -> None:
        """Warn once, for each seed, that its values have left the range that the rewards allow."""
        excess = np.atleast_1d(np.asarray(row.get("value_excess", 0.0)))
        new = (excess > self._health.value_excess) & ~self._diverging
        if new.any():
            self._diverging |= new
            print(
                f"warning: stage {self._stage!r} of {self._run.path}: at step {row['step']} the critic diverges "
                f"({self._named(new)}): values are {float(excess[new].max()):.3g} times the width of what the rewards allow "
                "outside of it",
                file=sys.stderr,
                flush=True,
            )

    def _named(self, rows: np.ndarray) -> str:
        """Seeds in words, each with its setting or arm where there are several."""
        found = [int(i) for i in np.flatnonzero(rows)]
        return name_seeds(found, self._run.config.seeds, self._program.seeds, self._program.groups)
