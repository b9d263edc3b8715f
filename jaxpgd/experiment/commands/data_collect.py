"""`jaxpgd data collect`: a Minari dataset from a policy in a Gymnasium environment."""

import dataclasses
import shlex
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from jaxpgd.datasets.minari_writer import DatasetWriter, free_target, new_dataset
from jaxpgd.datasets.scores import LOCAL_KEY
from jaxpgd.errors import check
from jaxpgd.experiment.commands.data_collect_options import Collection, check_options
from jaxpgd.experiment.run.progress import StageProgress
from jaxpgd.experiment.stages.load import load_models, load_policy, open_trained
from jaxpgd.experiment.stages.prepare import prepare
from jaxpgd.simulators.collection import Behaviour, blend, collect, measure
from jaxpgd.simulators.collection_task import Task, collection_task
from jaxpgd.simulators.environments import quiet_mujoco
from jaxpgd.simulators.stored_actor import actor_for
from jaxpgd.types import Policy


def collect_dataset(options: Collection) -> Path:
    """Collect the dataset that the options ask for and say what is in it; returns its folder.

    Everything that can be known to be wrong is checked before the environment is stepped. Raises InputError.
    """
    kwargs = check_options(options)
    target = free_target(options.out, options.dataset_id)
    task = collection_task(options.env, kwargs)
    with closing(task.env), quiet_mujoco():
        policy = _policy(options, task)
        if task.spec is None:
            print(f"note: {options.env} is not stored with the data: JSON cannot name its class or its arguments", flush=True)
        spaces = (task.env.observation_space, task.env.action_space)
        with new_dataset(options.out, options.dataset_id, *spaces, task.spec) as writer:
            behaviours, facts = _behaviours(options, task, policy)
            done = _fill(writer, options, task, behaviours)
            writer.metadata = _metadata(options, facts, done)
    _tell(options, done)
    return target


def _tell(options: Collection, done: dict[str, Any]) -> None:
    where, name = shlex.quote(str(Path(options.out).expanduser())), options.dataset_id
    print(f"wrote {name} under {where}: {done['transitions']} transitions in {done['episodes']} episodes{_mean_text(done)}")
    print(f"look at it with: MINARI_DATASETS_PATH={where} jaxpgd data info {name}")
    print(f"load it with: MINARI_DATASETS_PATH={where} python -c \"import minari; minari.load_dataset('{name}')\"")


def _policy(options: Collection, task: Task) -> Policy | None:
    """The policy that acts, checked against the environment; None for the random one. Raises InputError."""
    obs_dim, action_dim = task.obs_dim, len(task.info.action_low)
    if options.actor:
        return actor_for(options.actor, obs_dim, action_dim)
    if not options.run:
        return None
    run = open_trained(options.run)
    prepared = prepare(run.config)
    theirs, ours = prepared.dataset, (task.info.obs_keys, obs_dim, action_dim)
    expected = (theirs.info.obs_keys, theirs.obs_dim, theirs.action_dim)
    check(ours == expected, "environment", options.env, f"observation keys, observation size and action size {expected}, "
          f"as the agents of {options.run} know them, not {ours}")  # fmt: skip
    return load_policy(run, prepared, load_models(run, prepared), options.policy)


def _behaviours(options: Collection, task: Task, policy: Policy | None) -> tuple[list[Behaviour], dict[str, Any]]:
    """What acts in turn, and the measured mean returns: of the random policy, and of others where fractions ask for them."""
    o, count = options, options.measured_episodes
    random = _mean(task, Behaviour(), o)
    print(f"the random policy: mean return {random:.6g} over {count} episodes", flush=True)
    high = o.reference_return
    check(high is None or high > random, "--reference-return", high, f"more than the random policy's mean return, {random:.6g}")
    facts: dict[str, Any] = {"random_return": random, "measured_episodes": count}
    plain = Behaviour(policy, o.greedy, o.noise, o.epsilon)
    if not o.expert_fraction:
        return [plain], facts
    own = _mean(task, plain, o)
    print(f"{o.acting}: mean return {own:.6g} over {count} episodes", flush=True)
    check(own > random, "--expert-fraction", o.expert_fraction,
          f"a policy that does better than the random one ({random:.6g}), not {own:.6g}")  # fmt: skip
    behaviours, blends = [], []
    for fraction in o.expert_fraction:
        at = lambda epsilon: _mean(task, dataclasses.replace(plain, epsilon=epsilon), o)
        epsilon, found = blend(at, random, own, fraction)
        reached = (found - random) / (own - random)
        print(f"fraction {fraction:g}: a random action with probability {epsilon:.4g} gives mean return {found:.6g}, "
              f"fraction {reached:.3f}", flush=True)  # fmt: skip
        behaviours.append(dataclasses.replace(plain, epsilon=epsilon))
        blends.append({"fraction": fraction, "epsilon": epsilon, "return": found, "measured_fraction": reached})
    return behaviours, facts | {"own_return": own, "blends": blends}


def _mean(task: Task, behaviour: Behaviour, options: Collection) -> float:
    return float(measure(task, behaviour, options.measured_episodes, options.seed).mean())


def _fill(writer: DatasetWriter, options: Collection, task: Task, behaviours: list[Behaviour]) -> dict[str, Any]:
    """Write the episodes; returns how many there are, and the mean return of those that ended by themselves."""
    unit = "transitions" if options.episodes is None else "episodes"
    total = options.episodes or options.transitions or 100_000
    steps, count, returns = 0, 0, []
    with StageProgress("collect", total, unit) as progress:
        for episode, complete in collect(task, behaviours, total, unit, options.seed):
            writer.add(episode)
            steps, count = steps + len(episode), count + 1
            if complete:
                returns.append(float(np.sum(episode.rewards)))
            progress.advance(len(episode) if unit == "transitions" else 1)
    mean = float(np.mean(returns)) if returns else None
    return {"transitions": steps, "episodes": count, "complete_episodes": len(returns), "mean_return": mean}


def _mean_text(done: dict[str, Any]) -> str:
    return (
        f", mean return {done['mean_return']:.6g} of {done['complete_episodes']} complete episodes"
        if done["complete_episodes"]
        else ""
    )


def _metadata(o: Collection, facts: dict[str, Any], done: dict[str, Any]) -> dict[str, Any]:
    """The metadata of the dataset: Minari's own keys, `jaxpgd_local`, and `jaxpgd_collection` with every number."""
    n = facts["measured_episodes"]
    how = [f"{o.acting} in {o.env}" + (", by its mode" if o.greedy else "")]
    how += [f"Gaussian noise {o.noise:g} on actions in [-1, 1]"] * bool(o.noise)
    how += [f"a random action with probability {o.epsilon:g}"] * bool(o.epsilon)
    how += [
        f"fraction {b['fraction']:g} of the way from the random policy's mean return to its own {facts['own_return']:.6g}: a "
        f"random action with probability {b['epsilon']:.4g}, measured return {b['return']:.6g}"
        for b in facts.get("blends", ())
    ]
    text = (f"Made locally by jaxpgd data collect, seed {o.seed}: {'; '.join(how)}{_mean_text(done)}. ref_min_score is the "
            f"mean return of the random policy over {n} episodes.")  # fmt: skip
    if o.reference_return is not None:
        text += " ref_max_score was given by hand."
    told = dataclasses.asdict(dataclasses.replace(o, run=Path(o.run).name, actor=Path(o.actor).name))
    del told["out"]  # where a file lies says nothing to others
    return {
        "description": text,
        "algorithm_name": o.acting.removeprefix("the "),
        "ref_min_score": facts["random_return"],
        **({} if o.reference_return is None else {"ref_max_score": o.reference_return}),
        "num_episodes_average_score": n,
        LOCAL_KEY: True,
        "jaxpgd_collection": {**told, **facts, **done},
    }
