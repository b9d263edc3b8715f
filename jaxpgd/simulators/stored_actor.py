"""Actors stored as weights in .npz files: behaviour policies of collected data, and target policies."""

from pathlib import Path

import jax.numpy as jnp
from jax import Array, nn, random
from jax.scipy.stats import norm

from jaxpgd.datasets.checks import check_finite
from jaxpgd.datasets.untrusted import read_npz
from jaxpgd.errors import check
from jaxpgd.tokens import ACTION_CLIP
from jaxpgd.types import Policy, PyTree

_WIDEST = 3.0  # pre-tanh mean beyond which the slope of tanh is taken as constant
_NAMES = ("w0", "b0", "w1", "b1", "w2", "b2")


def stored_actor(path: str | Path) -> Policy:
    """The tanh-Gaussian actor of an .npz file with weights w0 b0 w1 b1 w2 b2 (two ReLU layers, then mean and log std).

    Observations are raw, and log std is clipped to [-5, 2]. The log-density includes the tanh Jacobian. Actions are clipped to
    +-0.999 first, so that it is finite at saturated actions. `variance`, of the action, is divided by the squared slope of tanh
    at the mean. Raises InputError if the file cannot be read or holds no such actor.
    """
    expected = f"an npz file with {', '.join(_NAMES)}"
    stored, _ = read_npz(Path(path), _NAMES, "policy", expected)
    check(stored.keys() == set(_NAMES), "policy", str(path), expected)
    params = {name: jnp.asarray(value, jnp.float32) for name, value in stored.items()}
    sizes = [params[f"w{i}"].shape for i in range(3)]
    fits = all(len(s) == 2 for s in sizes) and sizes[0][1] == sizes[1][0] and sizes[1][1] == sizes[2][0]
    check(
        fits and sizes[2][1] % 2 == 0, "policy", sizes, "three weight matrices that follow each other, the last of 2A columns"
    )
    for i, (_, columns) in enumerate(sizes):
        check(params[f"b{i}"].shape == (columns,), f"b{i} of {path}", params[f"b{i}"].shape, f"one for each column of w{i}")
    check_finite(str(path), stored)
    return Policy(params=params, sample_fn=_sample, mode_fn=_mode, log_prob_fn=_log_prob)


def actor_for(path: str | Path, obs_dim: int, action_dim: int, field: str = "--actor") -> Policy:
    """`stored_actor` for observations [O] and actions [A]. Raises InputError if the actor has other sizes."""
    policy, sizes = stored_actor(path), (obs_dim, 2 * action_dim)
    found = (policy.params["w0"].shape[0], policy.params["w2"].shape[1])
    check(found == sizes, field, str(path), f"{sizes[0]} inputs and {sizes[1]} outputs, not {found[0]} and {found[1]}")
    return policy


def _gaussian(params: PyTree, obs: Array) -> tuple[Array, Array]:
    hidden = nn.relu(obs @ params["w0"] + params["b0"])
    hidden = nn.relu(hidden @ params["w1"] + params["b1"])
    mean, log_std = jnp.split(hidden @ params["w2"] + params["b2"], 2, axis=-1)
    return mean, jnp.exp(jnp.clip(log_std, -5.0, 2.0))


def _sample(params: PyTree, key: Array, obs: Array) -> Array:
    mean, std = _gaussian(params, obs)
    return jnp.tanh(mean + std * random.normal(key, mean.shape, mean.dtype))


def _mode(params: PyTree, obs: Array) -> Array:
    return jnp.tanh(_gaussian(params, obs)[0])


def _log_prob(params: PyTree, obs: Array, action: Array, variance: Array | float) -> Array:
    mean, std = _gaussian(params, obs)
    clipped = jnp.clip(action, -ACTION_CLIP, ACTION_CLIP)
    slope = 1.0 - jnp.tanh(jnp.clip(mean, -_WIDEST, _WIDEST)) ** 2
    density = norm.logpdf(jnp.arctanh(clipped), mean, jnp.sqrt(std**2 + variance / slope**2))
    return jnp.sum(density - jnp.log1p(-(clipped**2)), axis=-1)
