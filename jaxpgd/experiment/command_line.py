"""The commands of `jaxpgd`, with their arguments. Nothing here imports JAX before a command is called."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

from jaxpgd.errors import check
from jaxpgd.experiment.arguments import Argument, Command, counts, names, numbers


def _run(found: dict[str, Any]) -> None:
    from jaxpgd.experiment.commands.run import run_all

    run_all(read_config(found), resume=found["resume"])


def _train_denoiser(found: dict[str, Any]) -> None:
    from jaxpgd.experiment.commands.train_denoiser import run_denoiser

    run_denoiser(read_config(found), resume=found["resume"])


def read_config(found: dict[str, Any]) -> Any:
    """The validated config of `run`: its file, then its settings. Raises InputError."""
    from jaxpgd.experiment.config_files import config_of, load_config
    from jaxpgd.experiment.overrides import read_overrides

    path, debug = found.get("config"), ["--health.debug-nans", "true"] if found["debug_nans"] else []
    return load_config(path, read_overrides([*found["settings"], *debug], config_of(path)))


def _train_agent(found: dict[str, Any]) -> None:
    from jaxpgd.experiment.commands.train_agent import run_agents

    run_agents(found["run"], found.get("arm"))


def _evaluate(found: dict[str, Any]) -> None:
    from jaxpgd.experiment.commands.evaluate import run_evaluation

    run_evaluation(found["run"])


def _report(found: dict[str, Any]) -> None:
    from jaxpgd.experiment.commands.report import run_report

    run_report(found["run"])


def _reproduce(found: dict[str, Any]) -> None:
    from jaxpgd.experiment.commands.reproduce import reproduce

    if not reproduce(found["run"], found.get("out")):
        raise SystemExit(1)


def _synthesize(found: dict[str, Any]) -> None:
    from jaxpgd.experiment.commands.synthesize import export_synthetic

    export_synthetic(found.pop("run"), found.pop("out"), **found)


def _compare(found: dict[str, Any]) -> None:
    from jaxpgd.experiment.commands.compare_rollouts import compare_runs

    compare_runs(list(found.pop("runs")), found.pop("out", None), **found)


def _frontier(found: dict[str, Any]) -> None:
    from jaxpgd.experiment.commands.frontier import frontier_runs

    frontier_runs(list(found.pop("runs")), found.pop("out", None), **found)


def _pareto(found: dict[str, Any]) -> None:
    from jaxpgd.experiment.commands.pareto import pareto_run

    pareto_run(found.pop("run"), found.pop("out", None), **found)


def _study(found: dict[str, Any]) -> None:
    """Settings apply to all cells of the study."""
    from jaxpgd.experiment.overrides import read_overrides
    from jaxpgd.experiment.studies.plan import load_study, shipped, study_text
    from jaxpgd.experiment.studies.run import run_study
    from jaxpgd.experiment.studies.tables import merge

    check("study" in found, "study", "", f"one of {', '.join(shipped())}, or a .toml file")
    if found["show"]:
        beside = [f"--{name}" for name in ("scale", "only", "minutes", "out") if found.get(name)] + list(found["settings"])
        check(not beside, "study", beside, "nothing beside --show, which prints the whole file with all of its scales")
        print(study_text(found["study"]))
        return
    for word in found["settings"]:
        own = word.startswith(("--measure.", "--target.", "--axes.", "--scale."))
        remedy = f"Change a copy: `jaxpgd study {found['study']} --show > mine.toml`."
        check(
            not own, "option", word, "a setting of all cells, as `jaxpgd run` has it: this one is of the study's file", remedy
        )
    name, overrides, only = found["study"], read_overrides(found["settings"]), _only(found.get("only", ()))
    scale, out, began = found.get("scale", ""), found.get("out", Path("runs/studies")), time.monotonic()
    study, deadline = load_study(name, scale, only=only, overrides=overrides), math.inf
    if "minutes" in found:
        from jaxpgd.experiment.studies.budget import fit_to_minutes

        fitted = lambda lengths: load_study(name, scale, only=only, overrides=merge(overrides, lengths))
        study, deadline = fit_to_minutes(study, out, found["minutes"], fitted), began + 60.0 * found["minutes"]
    if run_study(study, out, deadline=deadline).failed:
        raise SystemExit(1)


def labels(text: str) -> dict[str, tuple[str, ...]]:
    """AXIS=A,B;OTHER=C: labels of axes."""
    parts = [part.partition("=") for part in text.split(";") if part]
    check(all(axis and chosen for axis, _, chosen in parts), "--only", text, "AXIS=A,B: an axis and labels of it")
    return {axis.strip(): names(values) for axis, _, values in parts}


def _only(given: tuple[dict[str, tuple[str, ...]], ...]) -> dict[str, tuple[str, ...]]:
    only: dict[str, tuple[str, ...]] = {}
    for axis, chosen in (pair for each in given for pair in each.items()):
        check(axis not in only, "--only", axis, "each axis once", "Name all of its labels together: AXIS=A,B.")
        only[axis] = chosen
    return only


def _data_info(found: dict[str, Any]) -> None:
    from jaxpgd.datasets import load
    from jaxpgd.datasets.describe import describe, format_description
    from jaxpgd.datasets.load import LOADED_BY
    from jaxpgd.experiment.config import check_seed
    from jaxpgd.experiment.config_files import apply_values
    from jaxpgd.experiment.overrides import read_overrides
    from jaxpgd.options import check_ranges
    from jaxpgd.simulators.environments import with_environment
    from jaxpgd.windows import DataConfig

    seed, words = found.pop("seed", 0), found.pop("settings")
    check_seed(seed)
    for word in (word for word in words if word.startswith("--")):
        known = "--window, --stride, --episodes, --seed, --data.key"
        check(word.startswith("--data."), "option", word, f"one of {known}", "See `jaxpgd data info --help`.")
    config = apply_values(DataConfig(), {**read_overrides(words).get("data", {}), **found}, "override", "data.")
    check_ranges(config, "data.")
    check(config.window > 1, "data.window", config.window, "at least 2 steps, for one usable transition")
    dataset = load(config.name, episodes=config.episodes, seed=seed, **{name: getattr(config, name) for name in LOADED_BY})
    if config.env_id:
        dataset = dataclasses.replace(dataset, info=with_environment(dataset.info, config.env_id))
    print(format_description(describe(dataset, seed=seed, **dataclasses.asdict(config))))


def _data_collect(found: dict[str, Any]) -> None:
    from jaxpgd.experiment.commands.data_collect import collect_dataset
    from jaxpgd.experiment.commands.data_collect_options import Collection

    collect_dataset(Collection(**found))


_RUN = Argument("run", "RUN", "A run directory.", required=True)
_RUNS = Argument("runs", "RUN", "Run directories of one dataset.", required=True, several=True)
_SEED = Argument("seed", "N", "Seed of all random numbers (0).", int)
_OUT = Argument("out", "DIR", "Where results go (a folder in RUN).", Path)
_POLICY = (
    Argument("policy", "ARM[:SEED]", "The policy: that of an arm of the run, of its first seed or of SEED (the last arm's)."),
    Argument("actor", "FILE.npz", "The policy instead: a tanh-Gaussian actor in an npz file."),
)
_CONFIG = (
    Argument("resume", "", "Continue from the last checkpoints; finished stages are skipped."),
    Argument("debug_nans", "", "Find the operation that makes the first NaN, at several times the cost."),
)
_FILE = (Argument("config", "CONFIG.toml", "Settings that differ from the defaults (default: the built-in point2d)."),)
_RESUME, _CONTINUES = "add --resume to continue from the last checkpoint", "the same command continues"
_SETTINGS = "--section.key VALUE"

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command(
            "run", "All stages of a run: denoiser, agents of every arm, evaluation, report.", _run, _FILE, _CONFIG, _SETTINGS,
            distributed=True, interrupted=_RESUME,
        ),
        Command(
            "train-denoiser", "The first stages of a run alone: the denoisers and the world model that its arms need.",
            _train_denoiser, _FILE, _CONFIG, _SETTINGS, distributed=True, interrupted=_RESUME,
        ),
        Command(
            "train-agent", "Train the agents of one arm of a run, or of all.", _train_agent, (_RUN,),
            (Argument("arm", "ARM", "The arm (all)."),), distributed=True, interrupted=_CONTINUES,
        ),
        Command(
            "evaluate", "Measure returns in the environment and the quality of synthetic trajectories, then report.", _evaluate,
            (_RUN,),
        ),
        Command("report", "Draw the figures and write report.html of a run again.", _report, (_RUN,)),
        Command(
            "reproduce", "Run the config of a finished run once more and say whether every bit is the same.", _reproduce,
            (_RUN,), (Argument("out", "DIR", "Where the second run goes (RUN/reproduced).", Path),), interrupted=_CONTINUES,
        ),
        Command(
            "synthesize", "Write synthetic trajectories of a run's models as a Minari dataset and a flat npz file. Without a "
            "policy they are unguided.", _synthesize, (_RUN,), (
                Argument("out", "DIR", "the directory of the new dataset", Path, required=True),
                *_POLICY,
                Argument("kind", "ARM", "The arm whose synthesizer is used, such as dydiff (guided where there is a policy)."),
                Argument("trajectories", "N", "How many trajectories (1024).", int),
                Argument("coefficient", "X", "The guidance coefficient (the run's).", float),
                _SEED,
            ),
        ),
        Command(
            "compare-rollouts", "Roll one policy out by every model of the runs and in the real environment: error by step. "
            "Rollouts start from states of the dataset and are as long as the longest training window.", _compare, (_RUNS,), (
                *_POLICY,
                Argument("length", "T", "Steps of a rollout (the longest training window).", int),
                Argument("trajectories", "N", "How many rollouts (200).", int),
                _OUT, _SEED,
            ),
        ),
        Command(
            "frontier", "Likelihood against dynamics error of every guidance at every coefficient, and the largest coefficient "
            "within an error.", _frontier, (_RUNS,), (
                *_POLICY,
                Argument("kinds", "A,B", "Kinds of guidance (all).", names),
                Argument("coefficients", "X,Y", "Guidance coefficients (0.03 to 10).", numbers),
                Argument("trajectories", "N", "Trajectories of each (256).", int),
                Argument("max_dynamics_error", "TIMES", "Bound on the dynamics error, relative to unguided samples.", float),
                _OUT, _SEED,
            ),
        ),
        Command(
            "pareto", "Number of function evaluations (NFE) against fidelity of every solver. The cheapest within 5 % of 256 "
            "Heun steps is recommended and written as TOML.", _pareto, (_RUN,), (
                Argument("guided", "", "Measure guided samples, towards the policy."),
                *_POLICY,
                Argument("guidance", "KIND", "The kind of guidance (the run's)."),
                Argument("coefficient", "X", "The guidance coefficient (the run's).", float),
                Argument("reference", "RUN", "Distances are to samples of this run's denoiser (to held-out windows)."),
                Argument("kinds", "A,B", "Solvers (all).", names),
                Argument("nfe", "4,8", "Numbers of function evaluations (4 to 512).", counts),
                Argument("trajectories", "N", "Trajectories of each (256).", int),
                _OUT, _SEED,
            ),
        ),
        Command(
            "study", "An experiment over a grid of settings, resumed cell by cell: results.csv, figures, report.html.", _study,
            (Argument("study", "NAME|FILE.toml", "A shipped study, or a file."),), (
                Argument("scale", "SCALE", "One of the study's scales (its first)."),
                Argument("only", "AXIS=A,B", "Keep these labels of an axis; once for each axis.", labels, several=True),
                Argument("minutes", "M", "Of studies with a [budget]: shorten training so that all ends in this time.", float),
                Argument("out", "DIR", "Where studies are kept (runs/studies).", Path),
                Argument("show", "", "Print the study's TOML text, to be changed and run as a file."),
                Argument("resume", "", "Accepted as for run, though studies always resume."),
            ), _SETTINGS, interrupted=_CONTINUES,
        ),
        Command(
            "data info", "What a dataset holds, and the windows of it that a run with these settings trains on.", _data_info,
            (Argument("name", "NAME", "A Minari id, the path of a D4RL or flat file, or point2d.", required=True),), (
                Argument("window", "T", "Steps of a window (data.window).", int),
                Argument("stride", "K", "Steps between window starts (data.stride).", int),
                Argument("episodes", "N", "Episodes generated, of built-in environments (data.episodes).", int),
                _SEED,
            ), "--data.key VALUE", interrupted="nothing was written",
        ),
        Command(
            "data collect", "Collect a Minari dataset of a policy in a Gymnasium environment. Actions are sampled, or the "
            "policy's mode, with Gaussian noise or uniformly random ones among them.", _data_collect,
            (Argument("env", "ENV_ID", 'A Gymnasium id; "module:Id" for one of your own.', required=True),), (
                Argument("out", "DIR", "the folder of Minari datasets that the new one goes to", required=True),
                Argument("id", "DATASET_ID", "The dataset's id (jaxpgd/ENV/POLICY-local-v0)."),
                Argument("policy", "random|ARM[:SEED]", "What acts: uniformly random actions (default), or an arm of --run."),
                Argument("run", "RUN", "The run directory that --policy is of."),
                Argument("actor", "FILE.npz", "What acts instead: a tanh-Gaussian actor in an npz file."),
                Argument("greedy", "", "Take the policy's mode instead of samples."),
                Argument("noise", "STD", "Standard deviation of Gaussian noise on actions in [-1, 1] (0).", float),
                Argument("epsilon", "P", "Probability of a uniformly random action (0).", float),
                Argument("expert_fraction", "F,G", "Choose epsilon such that the mean return is F of the way from the random "
                         "policy's to the policy's own; for several F, equal parts of the data.", numbers),
                Argument("transitions", "N", "At least so many transitions (100,000).", int),
                Argument("episodes", "N", "Episodes, instead of --transitions.", int),
                Argument("measured_episodes", "N", "Episodes over which returns are measured (50).", int),
                Argument("reference_return", "X", "The return that scores 100 (the policy's own).", float),
                Argument("env_kwargs", "JSON", "Keyword arguments of the environment.", str),
                _SEED,
            ), interrupted="nothing was written",
        ),
    )
}  # fmt: skip


def usage() -> str:
    """What `jaxpgd --help` prints."""
    return "\n".join([
        "usage: jaxpgd COMMAND [ARGUMENTS]", "", *(command.summary() for command in COMMANDS.values()), "",
        "`jaxpgd COMMAND --help` says what a command takes; that of `run` and `train-denoiser` lists every setting.",
        "With --distributed run, train-denoiser and train-agent are one of several processes that share the work,",
        "started alike on every host (SLURM, Open MPI, GKE and TPU are recognised); all devices of one host are",
        "used without it. `jaxpgd --version` prints the version.",
    ])  # fmt: skip
