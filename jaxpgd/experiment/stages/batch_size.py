"""How many trajectories are sampled at once (`sampler.batch_size`): as asked for, or the largest batch that fits."""

import jax

from jaxpgd.experiment.config import Config
from jaxpgd.experiment.run.directory import ClaimedRun
from jaxpgd.experiment.run.resolved import BATCH_SIZE, with_batch_size
from jaxpgd.experiment.run.view import RunView
from jaxpgd.experiment.stages.build import Models
from jaxpgd.experiment.sweep import read_sweep
from jaxpgd.parallel import broadcast
from jaxpgd.synthesis.diffusion import make_consistency
from jaxpgd.synthesis.memory import largest_batch_that_fits


def largest_batch(config: Config, models: Models) -> int:
    """The largest batch that fits this device beside the agents of a run; 0 where no model samples trajectories."""
    agents = -(-config.seeds * len(read_sweep(config).settings) // len(jax.devices()))  # at once on one device
    found = []
    if models.denoiser is not None:
        through = "guided" in config.arms and config.guidance.kind != "published"
        codec, length = models.denoiser.codec, config.synthesis.length or models.denoiser.length
        correct = make_consistency(config.synthesis.consistency, models.world, codec, length)
        shape = (length, codec.token_dim)
        found.append(largest_batch_that_fits(models.denoiser.denoise, shape, guided=through, correct=correct, agents=agents))
    if models.states is not None:
        shape = (config.synthesis.length or models.states.length, models.states.entries.dim)
        found.append(largest_batch_that_fits(models.states.denoise, shape, guided=False, agents=agents))
    return min(found, default=0)


def decide_batch_size(run: ClaimedRun, models: Models) -> None:
    """Where `sampler.batch_size` is 0, decide a number for this kind of device: the same for every process and stage.

    A smaller one that this run had to fall back to stays.
    """
    device, kept = jax.devices()[0].device_kind, run.resolved.get(BATCH_SIZE)
    if run.config.sampler.batch_size > 0 or (kept is not None and kept.device == device):
        return
    size = int(broadcast(largest_batch(run.config, models)))
    if size and (kept is None or kept.device or size < kept.value):
        why = f"the largest that fits half of the free memory of the device ({device}), as sampler.batch_size is 0"
        run.decide(BATCH_SIZE, size, why, device=device)


def with_models(run: RunView, models: Models) -> Config:
    """The config of a run as its models are to be sampled by a command: as decided, at a batch that fits this device."""
    return with_largest_batch(run.effective(), models)


def with_largest_batch(config: Config, models: Models) -> Config:
    """The config with the largest batch that fits, where it leaves `sampler.batch_size` open."""
    size = 0 if config.sampler.batch_size else largest_batch(config, models)
    return with_batch_size(config, size) if size else config
