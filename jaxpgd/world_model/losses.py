"""Losses of the networks of a world model."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxpgd.types import PyTree

BOUND_WEIGHT = 0.01  # of the pull that brings the bounds of the log-variance together (PETS, appendix A.1)


def gaussian_loss(network: Any, params: PyTree, x: Array, y: Array, beta: Array | float = 0.0) -> tuple[Array, Array]:
    """Training loss [] and squared error [] of one state model on inputs x [B, I] and targets y [B, J].

    The Gaussian negative log-likelihood of PETS (arXiv 1805.12114, section 4, loss_Gauss; MBPO, arXiv 1906.08253, uses the
    same) without its constant, each term weighted by its variance to the power beta, which counts as a constant (beta-NLL,
    Seitzer et al., arXiv 2203.09168, equation 4), and the pull on the learned bounds of the log-variance:

        mean_j[var_j(x)^beta ((mu_j(x) - y_j)^2 / var_j(x) + log var_j(x))] + 0.01 sum_j(log var_max,j - log var_min,j)

    The likelihood itself (beta 0) divides the gradient of the mean by the variance: entries that are badly predicted come to
    count for nothing, and stay so. With beta 1 means learn as by squared error.
    """
    mean, log_variance = network.apply(params, x)
    chex.assert_equal_shape([mean, log_variance, y])
    square = jnp.square(mean - y)
    bounds = params["params"]["max_log_variance"].sum() - params["params"]["min_log_variance"].sum()
    weight = jax.lax.stop_gradient(jnp.exp(beta * log_variance))
    return (weight * (square * jnp.exp(-log_variance) + log_variance)).mean() + BOUND_WEIGHT * bounds, square.mean()


def squared_loss(network: Any, params: PyTree, x: Array, y: Array) -> tuple[Array, Array]:
    """Squared error [] of the reward model on x [B, I] and y [B], twice: it is the training loss as well."""
    prediction = network.apply(params, x)
    chex.assert_equal_shape([prediction, y])
    loss = jnp.square(prediction - y).mean()
    return loss, loss


def logistic_loss(network: Any, params: PyTree, x: Array, y: Array) -> tuple[Array, Array]:
    """Cross-entropy [] of the terminal classifier on x [B, I] and terminals y [B], twice: it is the training loss as well."""
    logit = network.apply(params, x)
    chex.assert_equal_shape([logit, y])
    loss = optax.sigmoid_binary_cross_entropy(logit, y).mean()
    return loss, loss
