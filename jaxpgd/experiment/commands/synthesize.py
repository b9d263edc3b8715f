"""`jaxpgd synthesize`: trajectories of a trained denoiser as a dataset that other libraries load."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxpgd.datasets.export import export_minari, export_npz
from jaxpgd.errors import check
from jaxpgd.experiment.config import Config, check_seed
from jaxpgd.experiment.needs import needs
from jaxpgd.experiment.run.directory import make_directory
from jaxpgd.experiment.run.out_of_memory import with_half_the_batch
from jaxpgd.experiment.run.view import open_run
from jaxpgd.experiment.stages.agent_config import agent_config
from jaxpgd.experiment.stages.build import arm_synthesizer
from jaxpgd.experiment.stages.load import agent_number, chosen_policy, load_run
from jaxpgd.experiment.stages.model_source import require_models
from jaxpgd.experiment.stages.prepare import stage_key
from jaxpgd.synthesis.diffusion import synthesize_from
from jaxpgd.synthesis.replay import sample_real
from jaxpgd.types import Trajectory


def export_synthetic(
    run_path: str,
    out: Path,
    *,
    policy: str = "",
    actor: str = "",
    kind: str = "",
    trajectories: int = 1024,
    coefficient: float | None = None,
    seed: int = 0,
) -> None:
    """Write `trajectories` synthetic trajectories under `out`: a Minari dataset and `transitions.npz`.

    `kind` is an arm of the run; empty: guided towards `policy` ("ARM" or "ARM:SEED" of the run) or the `actor` of an npz file,
    unguided where neither is given.
    World-model and DyDiff trajectories need a policy, and start at observations of the dataset. Raises InputError.
    """
    kind = kind or ("guided" if policy or actor else "unguided")
    check(trajectories > 0, "--trajectories", trajectories, "a number above 0")
    check_seed(seed)
    check(not out.exists() or (out.is_dir() and not any(out.iterdir())), "--out", str(out), "a new or empty directory")
    run = open_run(run_path)
    kinds = sorted({*run.config.arms, *(("unguided", "guided") if needs(run.config, "denoiser") else ())} - {"real"})
    check(kind in kinds, "--kind", kind, f"one of {', '.join(kinds)}, which this run can make")
    check(kind == "unguided" or bool(policy or actor), "--policy", policy, f"ARM[:SEED], which {kind} trajectories follow")
    if coefficient is not None:
        check(kind == "guided", "--coefficient", coefficient, "no value without --policy")
        check(0 <= coefficient < math.inf, "--coefficient", coefficient, "a finite number not below 0")
    require_models(run)
    make_directory(out)
    loaded = load_run(run)
    prepared = loaded.prepared
    target = chosen_policy(loaded, policy, actor)[0] if policy or actor else None
    key, key_start = jax.random.split(jax.random.fold_in(stage_key(run.config, "export"), seed))
    start = sample_real(key_start, prepared.dataset.transitions(), trajectories).obs

    def synthesis(config: Config) -> Trajectory:
        synthesizer = arm_synthesizer(agent_config(run, config, agent_number(policy)), loaded.models, kind)
        if coefficient is not None:
            synthesizer = synthesizer.with_coefficient(jnp.asarray(coefficient))
        return jax.tree.map(np.asarray, synthesize_from(key, synthesizer, target, start))

    trajectory = with_half_the_batch(run, loaded.config, "synthesis", synthesis)
    text = f"Synthetic trajectories ({kind}) from a model of {prepared.dataset.info.name}, made by jaxpgd"
    name = f"jaxpgd/synthetic-{kind.replace('_', '-')}-v0"
    export_minari(trajectory, prepared.dataset.info, name, out, description=text)
    export_npz(trajectory, prepared.dataset.info, out / "transitions.npz")
    steps = trajectory.reward.shape[1]
    unknown = " Where a last state leads is not known: its action and reward are left out unless it ends in a terminal."
    print(
        f"wrote {trajectories} trajectories of {steps} {'states' if trajectory.last_obs is None else 'steps'}: "
        f"{out / 'transitions.npz'} and {name}.{unknown if trajectory.last_obs is None else ''}"
    )
    print(f"load with: MINARI_DATASETS_PATH={out} python -c \"import minari; minari.load_dataset('{name}')\"")
