"""The command line: `jaxpgd run` chains all stages, and each stage is a command of its own."""

import dataclasses
import io
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxpgd.errors import DeviceMemoryError, DivergenceError, EnvironmentFailure, InputError, StorageError, check
from jaxpgd.experiment.config import Config, check_seed
from jaxpgd.experiment.config_files import apply_values, config_of, load_config
from jaxpgd.experiment.overrides import read_overrides
from jaxpgd.options import check_ranges
from jaxpgd.windows import DataConfig

USAGE = """usage: jaxpgd COMMAND [ARGUMENTS]

  run [CONFIG.toml] [--resume] [--debug-nans] [--distributed] [--section.key VALUE ...]
        all stages: denoiser, agents of every arm, evaluation, report (default: the built-in point2d); --debug-nans finds the
        operation that makes the first NaN
  train-denoiser [CONFIG.toml] [--resume] [--distributed] [--section.key VALUE ...]
        the first stages of a run alone: denoisers and world model, whatever its arms need
  train-agent RUN [--arm ARM] [--distributed]
        the agents of one arm, or of all
  evaluate RUN                      returns in the environment, quality of synthetic trajectories
  report RUN                        figures and report.html
  reproduce RUN [--out DIR]         the same config once more (in RUN/reproduced), and whether every bit is the same
  synthesize RUN --out DIR [--policy ARM[:SEED] | --actor FILE.npz] [--kind ARM] [--trajectories N] [--coefficient X] [--seed N]
        write synthetic trajectories (1024) as a Minari dataset and a flat npz: guided towards the policy, or of another
        arm of the run (--kind dydiff); without a policy unguided
  compare-rollouts RUN [RUN ...] [--policy ARM[:SEED] | --actor FILE.npz] [--length T] [--trajectories N] [--out DIR] [--seed N]
        one policy (the last arm's first seed) rolled out by every model of the runs, from 200 states of the dataset for the
        longest training window, against the real environment: error by step, in RUN/comparison
  frontier RUN [RUN ...] [--policy ARM[:SEED] | --actor FILE.npz] [--kinds A,B] [--coefficients X,Y] [--trajectories N]
           [--max-dynamics-error TIMES] [--out DIR] [--seed N]
        likelihood against dynamics error of every guidance (coefficients 0.03 to 10, 256 trajectories each), in
        RUN/frontier; the largest coefficient within an error
  pareto RUN [--guided | --policy ARM[:SEED] | --actor FILE.npz] [--guidance KIND] [--coefficient X] [--reference RUN]
         [--kinds A,B] [--nfe 4,8] [--trajectories N] [--out DIR] [--seed N]
        number of function evaluations (4 to 512) against fidelity of every solver (256 trajectories each), in RUN/pareto; the
        cheapest within 5 % of 256 Heun steps is recommended, and written as TOML
  study NAME|FILE.toml [--scale SCALE] [--only AXIS=A,B ...] [--minutes M] [--out DIR] [--show] [--section.key VALUE ...]
        an experiment over a grid of settings, resumed cell by cell: results.csv, figures, report.html under DIR (runs/studies);
        --only, once for each axis, keeps some of its labels; --minutes, of studies with a [budget], shortens training so that
        all ends in this time, by rates measured first;
        --show prints its TOML text, to be changed and run as a file
  --version                         the version of jaxpgd
  run, train-denoiser and train-agent with --distributed: one of several processes that share the work, started alike on every
        host (SLURM, Open MPI, GKE and TPU are recognised); devices of one host are all used without it
  data info NAME [--window T] [--stride K] [--episodes N] [--seed N] [--data.key VALUE ...]
        what a dataset holds, and the windows of it that a run with these settings trains on
  data collect ENV_ID --out DIR [--id DATASET_ID] [--policy random | --policy ARM[:SEED] --run RUN | --actor FILE.npz]
       [--greedy] [--noise STD] [--epsilon P | --expert-fraction F,G] [--transitions N | --episodes N] [--seed N]
       [--reference-return X] [--measured-episodes N] [--env-kwargs JSON]
        a new Minari dataset (100,000 transitions) of a policy in a Gymnasium environment, "module:Id" for one of your own:
        actions sampled, or the policy's mode (--greedy), with Gaussian noise (in actions of [-1, 1]); uniformly random with
        probability P, or so often that the mean return is F of the way from the random policy's to the policy's own (for
        several F, like shares of the data); returns are measured over 50 episodes; X is the return that scores 100

`jaxpgd run --help` lists every setting, `jaxpgd COMMAND --help` says the above of one command.
"""


def usage_of(command: str) -> str:
    """The part of USAGE about one command; of `data` all parts, of `data info` its own."""
    lines, found = USAGE.splitlines(), list[str]()
    for first in (i for i, line in enumerate(lines) if line.startswith(f"  {command} ")):
        end = next(i for i in range(first + 1, len(lines)) if not lines[i].startswith("   "))
        found += [("   or: jaxpgd " if found else "usage: jaxpgd ") + lines[first].strip(), *lines[first + 1 : end]]
    return "\n".join(found)


def main(argv: list[str] | None = None) -> None:
    """Entry point. Bad input prints one message and exits with 2."""
    try:
        try:
            _main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, as `head`; what ends a program by SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def _main(argv: list[str] | None) -> None:
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show ends nothing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    if args[0] == "--version":
        print(f"jaxpgd {metadata.version('jaxpgd')}")
        return
    command, rest = args[0], args[1:]
    try:
        if "--distributed" in rest:
            from jaxpgd.parallel import join_hosts

            check(command in DISTRIBUTED, "--distributed", command, f"a command that trains: {', '.join(DISTRIBUTED)}")
            rest.remove("--distributed")
            join_hosts()
        check(command in COMMANDS, "command", command, f"one of {', '.join(COMMANDS)}")
        if command not in SETTINGS and not {"-h", "--help"}.isdisjoint(rest):
            part = " ".join(args[:2]) if command == "data" and rest[0] in DATA else command
            print(usage_of(part))
            return
        if {"-h", "--help"}.isdisjoint(rest):
            _ready(command)
        COMMANDS[command](rest)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (DivergenceError, StorageError, DeviceMemoryError, EnvironmentFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGTERM:
            print(f"terminated; {LEFT.get(command, _AGAIN)}", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print(f"interrupted; {LEFT.get(command, _AGAIN)}", file=sys.stderr)
        raise SystemExit(130) from None


def _ready(command: str) -> None:
    """Devices that are there, single precision, and compiled programs kept on disk. Raises InputError."""
    from jaxpgd.experiment.precision import single_precision
    from jaxpgd.parallel import require_devices

    require_devices()
    single_precision()
    if command != "data":
        from jaxpgd.experiment.compilation import keep_compiled_programs

        keep_compiled_programs()


def read_run_arguments(args: list[str], command: str) -> tuple[Config, bool]:
    """CONFIG, --resume and overrides of `run` as a validated config. Raises InputError."""
    args = [part for a in args for part in (a.split("=", 1) if a.startswith("--") else [a])]
    if "--help" in args or "-h" in args:
        from jaxpgd.experiment.settings_help import print_help

        print_help(f"jaxpgd {command} [CONFIG.toml] [--resume]")
    path = args.pop(0) if args and not args[0].startswith("-") else None
    resume, debug = "--resume" in args, ["--health.debug-nans", "true"] if "--debug-nans" in args else []
    args = [a for a in args if a not in ("--resume", "--debug-nans")]
    return load_config(path, read_overrides([*args, *debug], config_of(path))), resume


def options(args: list[str], command: str, *, required: tuple[str, ...] = (), **kinds: Callable[[str], Any]) -> dict[str, Any]:
    """Positional arguments (as `required`, in order) and `--name VALUE` options converted by `kinds`. Raises InputError."""
    found: dict[str, Any] = {}
    names = list(required)
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            check(
                name in kinds,
                "option",
                word,
                ("one of " + ", ".join("--" + k for k in kinds)) if kinds else "no option",
                f"See `jaxpgd {command} --help`.",
            )
            check(bool(rest), "option", word, "a value after it")
            value = rest.pop(0)
            try:
                found[name] = kinds[name](value)
            except ValueError:
                raise InputError(f"{word} = {value!r}: expected {kinds[name].__name__}.") from None
        else:
            check(bool(names), "argument", word, "no further argument")
            found[names.pop(0)] = word
    check(
        not names,
        "arguments",
        " ".join(args),
        f"{', '.join(n.upper() for n in names)} as well",
        f"See `jaxpgd {command} --help`.",
    )
    return found


def _run(args: list[str]) -> None:
    config, resume = read_run_arguments(args, "run")
    from jaxpgd.experiment.commands.run import run_all

    run_all(config, resume=resume)


def _train_denoiser(args: list[str]) -> None:
    config, resume = read_run_arguments(args, "train-denoiser")
    from jaxpgd.experiment.commands.train_denoiser import run_denoiser

    run_denoiser(config, resume=resume)


def _train_agent(args: list[str]) -> None:
    found = options(args, "train-agent", required=("run",), arm=str)
    from jaxpgd.experiment.commands.train_agent import run_agents

    run_agents(found["run"], found.get("arm"))


def _evaluate(args: list[str]) -> None:
    found = options(args, "evaluate", required=("run",))
    from jaxpgd.experiment.commands.evaluate import run_evaluation

    run_evaluation(found["run"])


def _report(args: list[str]) -> None:
    found = options(args, "report", required=("run",))
    from jaxpgd.experiment.commands.report import run_report

    run_report(found["run"])


def _reproduce(args: list[str]) -> None:
    found = options(args, "reproduce", required=("run",), out=Path)
    from jaxpgd.experiment.commands.reproduce import reproduce

    if not reproduce(found["run"], found.get("out")):
        raise SystemExit(1)


def _synthesize(args: list[str]) -> None:
    found = options(
        args,
        "synthesize",
        required=("run",),
        out=str,
        policy=str,
        actor=str,
        kind=str,
        trajectories=int,
        coefficient=float,
        seed=int,
    )
    check("out" in found, "--out", None, "the directory of the new dataset")
    from jaxpgd.experiment.commands.synthesize import export_synthetic

    out = Path(found.pop("out"))
    export_synthetic(found.pop("run"), out, **found)


def _paths(args: list[str], command: str) -> tuple[list[str], list[str]]:
    """The run directories that `args` begin with, at least one, and the rest. Raises InputError."""
    count = next((i for i, a in enumerate(args) if a.startswith("--")), len(args))
    check(count > 0, "arguments", "", "RUN", f"See `jaxpgd {command} --help`.")
    return args[:count], args[count:]


def _compare(args: list[str]) -> None:
    paths, args = _paths(args, "compare-rollouts")
    found = options(args, "compare-rollouts", policy=str, actor=str, length=int, trajectories=int, out=Path, seed=int)
    from jaxpgd.experiment.commands.compare_rollouts import compare_runs

    compare_runs(paths, found.pop("out", None), **found)


def numbers(text: str) -> tuple[float, ...]:
    """Numbers separated by commas."""
    return tuple(float(part) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(part.strip() for part in text.split(","))


def _frontier(args: list[str]) -> None:
    paths, args = _paths(args, "frontier")
    found = options(
        args, "frontier", policy=str, actor=str, trajectories=int, coefficients=numbers, kinds=names, max_dynamics_error=float,
        out=Path, seed=int,
    )  # fmt: skip
    from jaxpgd.experiment.commands.frontier import frontier_runs

    frontier_runs(paths, found.pop("out", None), **found)


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas."""
    return tuple(int(part) for part in text.split(","))


def _pareto(args: list[str]) -> None:
    guided = "--guided" in args
    found = options(
        [a for a in args if a != "--guided"], "pareto", required=("run",), policy=str, actor=str, guidance=str,
        coefficient=float, reference=str, kinds=names, nfe=counts, trajectories=int, out=Path, seed=int,
    )  # fmt: skip
    from jaxpgd.experiment.commands.pareto import pareto_run

    pareto_run(found.pop("run"), found.pop("out", None), guided=guided, **found)


def _study(args: list[str]) -> None:
    """Everything after the study's own options is settings of all its cells."""
    own = ("--scale", "--out", "--minutes")
    show, args = "--show" in args, [a for a in args if a != "--show"]
    from jaxpgd.experiment.studies.plan import load_study, shipped, study_text
    from jaxpgd.experiment.studies.tables import merge

    named = bool(args) and not args[0].startswith("--")
    check(named, "study", args[0] if args else "", f"one of {', '.join(shipped())}, or a .toml file")
    name, rest, mine, only = args[0], list[str](), list[str](), dict[str, tuple[str, ...]]()
    words = iter([part for a in args[1:] for part in (a.split("=", 1) if a.startswith("--") and "=" in a else [a])])
    for word in words:
        if word == "--only":
            for axis, chosen in labels(_after(word, words)).items():
                check(axis not in only, "--only", axis, "each axis once", "Name all of its labels together: AXIS=A,B.")
                only[axis] = chosen
        elif word != "--resume":  # studies always do
            (mine if word in own else rest).append(word)
            if word in own:
                mine.append(_after(word, words))
    found = options(mine, "study", scale=str, out=Path, minutes=float)
    from jaxpgd.experiment.studies.run import run_study

    if show:
        print(study_text(name))
        return
    overrides = read_overrides(rest)
    scale, out, began = found.get("scale", ""), found.get("out", Path("runs/studies")), time.monotonic()
    study, deadline = load_study(name, scale, only=only, overrides=overrides), math.inf
    if "minutes" in found:
        from jaxpgd.experiment.studies.budget import fit_to_minutes

        fitted = lambda lengths: load_study(name, scale, only=only, overrides=merge(overrides, lengths))
        study, deadline = fit_to_minutes(study, out, found["minutes"], fitted), began + 60.0 * found["minutes"]
    if run_study(study, out, deadline=deadline).failed:
        raise SystemExit(1)


def _after(option: str, words: Iterator[str]) -> str:
    """The value after an option. Raises InputError where there is none."""
    value = next(words, "")
    check(bool(value) and not value.startswith("--"), option, value, "a value after it")
    return value


def labels(text: str) -> dict[str, tuple[str, ...]]:
    """AXIS=A,B;OTHER=C: labels of axes."""
    parts = [part.partition("=") for part in text.split(";") if part]
    check(all(axis and chosen for axis, _, chosen in parts), "--only", text, "AXIS=A,B: an axis and labels of it")
    return {axis.strip(): names(values) for axis, _, values in parts}


def _data(args: list[str]) -> None:
    check(bool(args) and args[0] in DATA, "data", " ".join(args), "info NAME, or collect ENV_ID --out DIR")
    if args[0] == "collect":
        _collect(args[1:])
        return
    own, settings = _split_settings(args[1:])
    found = options(own, "data info", required=("name",), window=int, stride=int, episodes=int, seed=int)
    from jaxpgd.datasets import load
    from jaxpgd.datasets.describe import describe, format_description
    from jaxpgd.datasets.load import LOADED_BY
    from jaxpgd.simulators.environments import with_environment

    seed = found.pop("seed", 0)
    check_seed(seed)
    given = read_overrides(settings).get("data", {})
    config = apply_values(DataConfig(), {**given, **found}, "override", "data.")
    check_ranges(config, "data.")
    check(config.window > 1, "data.window", config.window, "at least 2 steps, for one usable transition")
    dataset = load(config.name, episodes=config.episodes, seed=seed, **{name: getattr(config, name) for name in LOADED_BY})
    if config.env_id:
        dataset = dataclasses.replace(dataset, info=with_environment(dataset.info, config.env_id))
    print(format_description(describe(dataset, seed=seed, **dataclasses.asdict(config))))


def _split_settings(args: list[str]) -> tuple[list[str], list[str]]:
    """Words of a command's own, and those of `--data.key VALUE`."""
    own, settings = list[str](), list[str]()
    target = own
    for word in (word for a in args for word in (a.split("=", 1) if a.startswith("--data.") else [a])):
        if word.startswith("--"):
            target = settings if word.startswith("--data.") else own
        target.append(word)
    return own, settings


def _collect(args: list[str]) -> None:
    greedy = "--greedy" in args
    found = options(
        [a for a in args if a != "--greedy"], "data collect", required=("env",), out=str, id=str, policy=str, run=str,
        actor=str, noise=float, epsilon=float, expert_fraction=numbers, transitions=int, episodes=int, seed=int,
        reference_return=float, measured_episodes=int, env_kwargs=str,
    )  # fmt: skip
    check("out" in found, "--out", None, "the folder of Minari datasets that the new one goes to")
    from jaxpgd.experiment.commands.data_collect import collect_dataset
    from jaxpgd.experiment.commands.data_collect_options import Collection

    collect_dataset(Collection(**found, greedy=greedy))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "run": _run,
    "train-denoiser": _train_denoiser,
    "train-agent": _train_agent,
    "evaluate": _evaluate,
    "report": _report,
    "reproduce": _reproduce,
    "synthesize": _synthesize,
    "compare-rollouts": _compare,
    "frontier": _frontier,
    "pareto": _pareto,
    "study": _study,
    "data": _data,
}

_AGAIN = "the same command does it again"
_RESUME, _CONTINUES = "add --resume to continue from the last checkpoint", "the same command continues"
LEFT = {"run": _RESUME, "train-denoiser": _RESUME, "train-agent": _CONTINUES, "study": _CONTINUES, "reproduce": _CONTINUES,
        "data": "nothing was written"}  # fmt: skip  # what an interruption leaves
SETTINGS = ("run", "train-denoiser")  # commands whose --help lists all settings
DATA = ("info", "collect")  # commands of `data`
DISTRIBUTED = ("run", "train-denoiser", "train-agent")  # commands that several hosts may share

if __name__ == "__main__":
    main()
