"""What tells cells, and the models that they share, apart: the settings that can change a result, and their hash."""

import dataclasses
import functools
import hashlib
import json
import operator
import re
from pathlib import Path
from typing import Any

from jaxpgd.experiment.config import Config
from jaxpgd.experiment.needs import clones, needs
from jaxpgd.experiment.precision import STATED
from jaxpgd.options import get

# of a config: they change no result (but for what `settings_of` takes of `health`)
IGNORED = ("out", "wandb_project", "checkpoint_seconds", "keep_checkpoints", "models_from", "preset", "health")
LOOP = "synthesis.dydiff.loop"
# Settings that were added after studies had been measured. At their defaults they are in no key, so that keys stay.
LATER = (STATED, "agent.rebrac", "world_model.norm", "synthesis.world_model.truncate",
         "synthesis.filter.uniform",
         "data.normalisation", "synthesis.filter.steps", "synthesis.world_model.actions", "synthesis.dydiff.actions",
         "synthesis.dydiff.scaled_conditions", "synthesis.dydiff.conditioning",
         "synthesis.dydiff.chained", "synthesis.dydiff.states", "synthesis.dydiff.common_noise",
         LOOP,
         "agent.diffusion_ql.ema_start", "agent.diffusion_ql.action_reconstruction", "agent.diffusion_ql.critic_hidden",
         "agent.diffusion_ql.critic_activation",
         *(f"agent.{kind}.{of}_norm" for kind in ("td3_bc", "iql", "cql") for of in ("critic", "actor")),
         "agent.td3_bc.cloning", "agent.td3_bc.policy_delay", "agent.td3_bc.actor",
         "denoiser.convolution", "data.clip_actions", "data.reward_scale", "data.reward_shift",
         "data.reward_normalisation", "data.pad_short", "data.fraction", "data.fraction_seed", "evaluation.max_steps",
         "agent.td3_bc.actor_first", "agent.td3_bc.init", "agent.iql.stale_value", "agent.iql.init",
         "agent.diffusion_ql.critic_lr", "agent.diffusion_ql.max_q_backup",
         "synthesis.drop_last", "synthesis.after_terminal", "evaluation.classifier")  # fmt: skip


def settings_of(config: Config) -> dict[str, Any]:
    """All settings of a config that can change its results, those of `health` where they differ from a study's own."""
    found = {name: value for name, value in dataclasses.asdict(config).items() if name not in IGNORED}
    del found["evaluation"]["processes"]  # changes no result either
    for name in left_out(config):
        *sections, last = name.split(".")
        functools.reduce(operator.getitem, sections, found).pop(last)
    if config.synthesis.consistency.kind == "none":  # as before there was such a section
        del found["synthesis"]["consistency"]
    if not clones(config):
        del found["synthesis"]["dydiff"]["behaviour"]
    if not needs(config, "world-model"):  # as before world models held out whole episodes
        del found["world_model"]["holdout_by"]
    health = {"skip_updates": config.health.skip_updates} if config.health.skip_updates else {}
    return found | ({"health": health} if health else {})


def left_out(config: Config) -> list[str]:
    """The settings of `LATER` that a config leaves as they were before there were such settings.

    Of a whole dataset nothing is drawn, so that its results are those of every `data.fraction_seed`. Anchored states were
    iterated otherwise before there was `synthesis.dydiff.loop`; others have none.
    """
    counts = {
        "data.fraction_seed": config.data.fraction < 1 and config.data.fraction_seed != Config().data.fraction_seed,
        LOOP: config.synthesis.dydiff.conditioning == "anchored",
    }
    return [name for name in LATER if not counts.get(name, get(config, name) != get(Config(), name))]


def short_hash(values: Any) -> str:
    """A hash of plain values, ten hexadecimal digits long."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def slug(name: str) -> str:
    """A dataset's name as part of a folder's."""
    stem = Path(name).stem if Path(name).suffix in (".hdf5", ".h5", ".npz") else name
    return re.sub("[^A-Za-z0-9]+", "-", stem).strip("-")
