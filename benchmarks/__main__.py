"""`python -m benchmarks [SUITE] [--out FILE.json]`: run one suite, or all that measure speed, and print the results as JSON.

Choose the cores from outside: `taskset -c 0 python -m benchmarks agents`.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxpgd.errors import InputError

FOLDERS = {
    "speed": ("agents", "denoiser", "dydiff", "end_to_end", "evaluation", "refresh", "sampling", "scaling"),
    "fidelity": ("ancestors", "conditions", "guidance"),
    "robustness": ("faults", "fuzz", "soak"),
}
# suite -> module with `run() -> dict`, imported only when it is asked for
SUITES = {"accelerator": "benchmarks.accelerator", "parts": "benchmarks.speed.parts", "peers": "benchmarks.speed.peers"}
SUITES |= {name: f"benchmarks.{folder}.{name}" for folder, names in FOLDERS.items() for name in names}
SPEED = FOLDERS["speed"]  # what runs without a suite's name
OPTIONS = {
    "accelerator": ("minutes", "predict", "rehearse"),
    "faults": ("kills", "damages", "disks"),
    "fuzz": ("inputs",),
    "peers": ("unifloral", "jax_corl"),
    "soak": ("minutes",),
}  # keyword arguments of a suite's `run`
TYPES = {"minutes": float, "unifloral": Path, "jax_corl": Path}  # of options that are not whole numbers
SWITCHES = {"predict": "print the predictions, measure nothing", "rehearse": "toy sizes, on any device"}
INCREMENTAL = ("accelerator",)  # suites whose `run` takes `out` and writes results as they come


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments, run, print. Of several suites, the results of each are written as soon as it ends."""
    try:
        try:
            _run(_parser().parse_args(argv))
        finally:
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader, such as `head`, has read enough: end as SIGPIPE would
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", nargs="?", choices=sorted(SUITES), help="by default all of " + ", ".join(SPEED))
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    for name in dict.fromkeys(name for names in OPTIONS.values() for name in names):
        owners = "for " + ", ".join(suite for suite, names in OPTIONS.items() if name in names)
        if name in SWITCHES:
            parser.add_argument(_flag(name), action="store_const", const=True, help=f"{owners}: {SWITCHES[name]}")
        else:
            parser.add_argument(_flag(name), type=TYPES.get(name, int), help=owners)
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _run(args: argparse.Namespace) -> None:
    if args.out is not None and not args.out.parent.is_dir():
        raise InputError(f"--out: no directory {args.out.parent}")
    given = {name: getattr(args, name) for names in OPTIONS.values() for name in names if getattr(args, name) is not None}
    for name in given:
        if name not in OPTIONS.get(args.suite, ()):
            raise InputError(f"{_flag(name)}: not an option of {args.suite or 'all suites'}")
    if args.suite:
        given |= {"out": args.out} if args.suite in INCREMENTAL else {}
        _write(importlib.import_module(SUITES[args.suite]).run(**given), args.out)
        return
    found: dict[str, Any] = {}
    for name in SPEED:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = importlib.import_module(SUITES[name]).run()
        _write(found, args.out, show=name == SPEED[-1])


def _write(results: dict[str, Any] | str, out: Path | None, *, show: bool = True) -> None:
    text = results if isinstance(results, str) else json.dumps(results, indent=2)
    if out is not None:
        out.write_text(text + "\n")
    if show:
        print(text)


if __name__ == "__main__":
    main()
