"""`python -m benchmarks [SUITE] [--out FILE.json]`: one suite, or all that measure speed; JSON, kept in FILE.json as well.

Cores are chosen from outside: `taskset -c 0 python -m benchmarks agents`.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# name -> module with `run() -> dict`; imported only when asked for
SUITES = {
    name: f"benchmarks.{name}"
    for name in (
        "agents",
        "conditions",
        "denoiser",
        "dydiff",
        "end_to_end",
        "evaluation",
        "faults",
        "fuzz",
        "guidance",
        "refresh",
        "sampling",
        "scaling",
        "soak",
    )
}


SPEED = tuple(name for name in SUITES if name not in ("conditions", "faults", "fuzz", "guidance", "soak"))
OPTIONS = {
    "faults": ("kills", "damages", "disks"),
    "fuzz": ("inputs",),
    "soak": ("minutes",),
}  # numbers that `run` of a suite takes


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments, run, report. Of several suites each is kept as soon as it is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", nargs="?", choices=sorted(SUITES), help="by default all of " + ", ".join(SPEED))
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    for suite, names in OPTIONS.items():
        for name in names:
            parser.add_argument(f"--{name}", type=float if name == "minutes" else int, help=f"of the suite {suite}")
    args = parser.parse_args(argv)
    if args.out is not None and not args.out.parent.is_dir():
        parser.error(f"--out: no directory {args.out.parent}")
    given = {name: getattr(args, name) for names in OPTIONS.values() for name in names if getattr(args, name) is not None}
    for name in given:
        if name not in OPTIONS.get(args.suite, ()):
            parser.error(f"--{name}: not an option of {args.suite or 'all suites'}")
    if args.suite:
        _keep(importlib.import_module(SUITES[args.suite]).run(**given), args.out)
        return
    found: dict[str, Any] = {}
    for name in SPEED:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = importlib.import_module(SUITES[name]).run()
        _keep(found, args.out, show=name == SPEED[-1])


def _keep(results: dict[str, Any], out: Path | None, *, show: bool = True) -> None:
    text = json.dumps(results, indent=2)
    if show:
        print(text)
    if out is not None:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
