"""`python -m benchmarks SUITE [--out FILE.json]`: run one suite, print its results as JSON, keep them in FILE.json.

Cores are chosen from outside: `taskset -c 0 python -m benchmarks agents`.
"""

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path

# name -> module with `run() -> dict`; imported only when asked for
SUITES = {
    name: f"benchmarks.{name}"
    for name in (
        "agents",
        "conditions",
        "denoiser",
        "dydiff",
        "end_to_end",
        "guidance",
        "refresh",
        "sampling",
        "scaling",
    )
}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments, run the suite, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    args = parser.parse_args(argv)
    if args.out is not None and not args.out.parent.is_dir():
        parser.error(f"--out: no directory {args.out.parent}")
    text = json.dumps(importlib.import_module(SUITES[args.suite]).run(), indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
