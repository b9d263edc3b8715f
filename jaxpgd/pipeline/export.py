"""`jaxpgd synthesize`: trajectories of a trained denoiser as a dataset that other libraries load."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxpgd.data.export import export_minari, export_npz
from jaxpgd.errors import InputError, check
from jaxpgd.pipeline.parts import build_synthesizer, prepare, stage_key
from jaxpgd.pipeline.run_directory import open_run
from jaxpgd.pipeline.stages import denoiser_stage, policy_of
from jaxpgd.synthesis.diffusion import synthesize


def export_synthetic(
    run_path: str,
    out: Path,
    *,
    policy: str = "",
    trajectories: int = 1024,
    coefficient: float | None = None,
    seed: int = 0,
) -> None:
    """Write `trajectories` synthetic trajectories under `out`: a Minari dataset and `transitions.npz`.

    Guided towards `policy` ("ARM" or "ARM:SEED" of the run), unguided where it is empty. Raises InputError.
    """
    check(trajectories > 0, "--trajectories", trajectories, "a number above 0")
    check(not out.exists() or (out.is_dir() and not any(out.iterdir())), "--out", str(out), "a new or empty directory")
    run = open_run(run_path)
    if not run.config.denoiser_from:
        run.require("denoiser", f"jaxpgd run {run.path / 'config.toml'} --resume")
    prepared = prepare(run.config)
    denoiser = denoiser_stage(run, prepared)
    target = policy_of(run, prepared, denoiser, policy) if policy else None
    synthesizer = build_synthesizer(run.config, denoiser, guided=target is not None)
    if coefficient is not None:
        check(target is not None, "--coefficient", coefficient, "no value without --policy")
        check(coefficient >= 0, "--coefficient", coefficient, "a number not below 0")
        synthesizer = synthesizer.with_coefficient(jnp.asarray(coefficient))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out = {str(out)!r}: expected a directory that can be written ({error.strerror}).") from error
    made = synthesize(jax.random.fold_in(stage_key(run.config, "export"), seed), synthesizer, target, count=trajectories)
    trajectory = jax.tree.map(np.asarray, made)
    kind = "guided" if target is not None else "unguided"
    text = f"Synthetic trajectories ({kind}) from a diffusion model of {prepared.dataset.info.name}, made by jaxpgd"
    name = f"jaxpgd/synthetic-{kind}-v0"
    export_minari(trajectory, prepared.dataset.info, name, out, description=text)
    export_npz(trajectory, prepared.dataset.info, out / "transitions.npz")
    print(f"wrote {trajectories} trajectories of {trajectory.reward.shape[1]} steps: {out / 'transitions.npz'} and {name}")
    print(f"load with: MINARI_DATASETS_PATH={out} python -c \"import minari; minari.load_dataset('{name}')\"")
