"""Trains a small denoiser and two seeds of an agent on one device and on all of them; prints losses as JSON.

A program of its own, as the number of devices is decided when JAX starts:
`python losses.py single|double [PROCESS COUNT PORT]`.
"""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PRECISION, *HOSTS = sys.argv[1:]
jax.config.update("jax_enable_x64", PRECISION == "double")
if HOSTS:
    index, count, port = map(int, HOSTS)
    jax.distributed.initialize(f"localhost:{port}", count, index)

import jaxpgd  # noqa: E402
from jaxpgd.agents.td3_bc import TD3BCConfig  # noqa: E402
from jaxpgd.diffusion.solvers import SamplerConfig  # noqa: E402
from jaxpgd.experiment.run.seeds import over_seeds  # noqa: E402
from jaxpgd.guidance.kinds import GuidanceConfig  # noqa: E402
from jaxpgd.parallel import DATA, SEEDS, Placement, device_mesh, map_batches, shard  # noqa: E402
from jaxpgd.synthesis.replay import SynthesisConfig  # noqa: E402
from jaxpgd.training.agent import AgentConfig, agent_program  # noqa: E402
from jaxpgd.training.denoiser import DenoiserConfig, denoiser_program, trained_denoiser  # noqa: E402
from jaxpgd.training.program import Program  # noqa: E402
from jaxpgd.windows import DataConfig  # noqa: E402

FLOAT = jnp.float64 if PRECISION == "double" else jnp.float32
DENOISER = DenoiserConfig(
    features=8,
    blocks=1,
    groups=4,
    steps=100,
    batch_size=16,
    peak_lr=3e-3,
    validate_every=10,
    validation_batches=1,
    block="plain",
)
AGENT = AgentConfig(updates=6, updates_per_chunk=2, batch_size=32, td3_bc=TD3BCConfig(hidden=(8,)))
SYNTHESIS = SynthesisConfig(trajectories=8, interval=4)
SAMPLER = SamplerConfig(kind="euler", steps=3, batch_size=8)


def cast(tree: Any) -> Any:
    """Floating-point leaves in the precision that is asked for."""
    return jax.tree.map(lambda x: x.astype(FLOAT) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def run(program: Program, data: Any, devices: Any, metric: str) -> tuple[Any, list[Any]]:
    """The final state and a metric of every chunk."""
    placement = Placement(program.seeds, devices)
    shared = placement.replicate(data)
    state = placement.init(lambda key, data: cast(program.init(key, data)))(jax.random.key(0), shared)
    step, found = placement.step(program.chunk), []
    for i in range(program.chunks):
        state, metrics = step(state, shared, jnp.asarray(i))
        found.append(np.asarray(metrics[metric], np.float64).tolist())
    return placement.gather(state), found


def main() -> None:
    """Everything on one device, then on all."""
    dataset = jaxpgd.load("point2d", episodes=20)
    windows = cast(jaxpgd.prepare_windows(dataset, DataConfig(window=8)))
    agent = jaxpgd.make_agent("td3_bc", AGENT.td3_bc, dataset.action_dim)
    seeds = over_seeds(lambda _: agent_program(agent, AGENT, SYNTHESIS), {}, 1, 2)
    results: dict[str, Any] = {"devices": len(jax.devices()), "processes": jax.process_count()}
    for name, devices in (("one", jax.local_devices()[:1]), ("all", None)):
        state, losses = run(denoiser_program(windows, DENOISER), windows, devices, "loss")
        results[f"denoiser_{name}"] = losses
        if PRECISION == "single":
            synthesizer = jaxpgd.make_synthesizer(trained_denoiser(state, windows), SAMPLER, GuidanceConfig("reconstruction"))
            experience = jaxpgd.Experience(windows.transitions, synthesizer, first=synthesizer.unguided())
            results[f"agent_{name}"] = run(seeds, experience, devices, "critic_loss")[1]
    rows = lambda x: x.sharding.shard_shape(x.shape)[0]  # of the leading axis on each device
    placement = Placement(2)
    results["seed_rows"] = rows(placement.shard(jnp.arange(2.0)))
    with jax.set_mesh(device_mesh()):
        results["batch_rows"] = rows(jax.jit(lambda x: shard(x, SEEDS, DATA))(jnp.arange(16.0)))
    placement = Placement()
    mapped = placement.init(lambda x: map_batches(lambda y: y * 2.0, x, 8))(jnp.arange(20.0))
    results["mapped"] = np.asarray(placement.gather(mapped)).tolist()
    print("RESULT" + json.dumps(results), flush=True)


main()
