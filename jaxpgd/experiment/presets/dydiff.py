"""DyDiff (Zhao et al., arXiv 2405.19189) as published: its hyperparameters, and its released code where that says more.

The code scales observations and actions to [-1, 1] by their limits; sigma_data and the noise levels with churn are in those
units. Filters and rollouts are those of the released specifications of its three base agents. docs/presets.md has the table,
and what is left out.
"""

from typing import Any

from jaxpgd.errors import check

_CHURN = {"churn": 60.0, "churn_min": 0.37, "churn_max": 52.2, "churn_noise": 1.002}

DYDIFF: dict[str, Any] = {
    "arms": ["real", "world_model", "dydiff"],
    "data": {
        "window": 100, "stride": 1, "allow_timeout_end": True, "pad_short": True, "terminal_repeats": 1,
        "normalisation": "limits",
    },
    "denoiser": {
        "features": 256, "blocks": 3, "block": "residual",  # ours
        "sigma_data": 0.5, "p_mean": -1.2, "p_std": 1.2, "p_high": 0.0, "epochs": 0, "steps": 500_000, "batch_size": 8,
        # the rate rises over 10 million windows to 1e-3, of which training sees 4 million
        "peak_lr": 4e-4, "warmup_fraction": 1.0, "initial_lr_fraction": 0.0,
        "optimiser": "adam", "gradient_clip": 0.0, "validate_every": 5000,
        "ema_width": 0.0, "ema": 0.9999723, "ema_every": 1,  # a half-life of 200,000 windows
    },
    "sampler": {
        "kind": "heun", "steps": 34, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0,
        "heun": {**_CHURN, "predictor": "churned"}, "euler": {**_CHURN, "predictor": "churned"}, "ancestral": _CHURN,
    },
    "world_model": {
        "members": 7, "elites": 5, "hidden": [200, 200, 200, 200], "reward_hidden": [256, 256], "lr": 1e-4,
        "batch_size": 256, "holdout_by": "transitions", "holdout": 0.2, "holdout_most": 5000, "epochs": 1000,
        "steps_per_epoch": 0, "patience": 7, "beta": 0.0, "ema": 0.0,
    },
    "synthesis": {  # every epoch 2048 rollouts, of which 0.6 are kept; the newest 2 million steps stay
        "regime": "fifo", "trajectories": 20_000, "fraction": 0.06145, "synthetic_ratio": 0.4,  # real ratio 0.6
        "filter": {"kind": "softmax", "keep": 0.6, "temperature": 0.05, "uniform": 1e-6, "steps": "all"},
        "world_model": {"sampled": False, "elite": "step", "penalty": 0.0},  # DyDiff's first rollout
        "dydiff": {
            "iterations": 2, "mix": 0.5, "window": 0, "conditions": "churned", "scaled_conditions": True, "sampled": False,
            "elite": "step", "conditioning": "published",
        },
    },
    "agent": {"batch_size": 256, "normalise_obs": True},
}  # fmt: skip

BASE_AGENTS: dict[str, dict[str, Any]] = {
    "td3_bc": {
        "lr": 3e-4, "gamma": 0.99, "polyak": 0.005, "alpha": 2.5, "cloning": 0.5, "policy_noise": 0.0, "critic_updates": 1,
        "policy_delay": 2, "actor": "tanh_gaussian", "actor_first": False, "adam_eps": 1e-8, "hidden": [256, 256],
    },
    "cql": {
        "actor_lr": 3e-5, "critic_lr": 3e-4, "alpha_lr": 3e-5, "gamma": 0.99, "polyak": 0.005, "weight": 10.0,
        "cql_temperature": 1.0, "n_actions": 10, "initial_alpha": 1.0, "target_entropy": -1.0, "cloning_updates": 0.0,
        "adam_eps": 1e-8, "hidden": [256, 256],
    },
    "diffusion_ql": {
        "lr": 3e-4, "critic_lr": 3e-4, "decay_updates": 0.0, "max_q_backup": 1, "gamma": 0.99, "polyak": 0.005, "eta": 1.0,
        "steps": 5, "beta_min": 0.1, "beta_max": 10.0, "ema": 0.995, "ema_every": 5, "ema_start": 1000.0, "gradient_clip": 5.0,
        "candidates": 50, "choice": "softmax", "time_features": 16, "action_reconstruction": "one_step", "adam_eps": 1e-8,
        "hidden": [256, 256, 256], "critic_hidden": [256, 256], "critic_activation": "relu",
    },
}  # fmt: skip


def dydiff_values(agent: str) -> dict[str, Any]:
    """Nested settings of `DYDIFF` that go with a base agent: 2000 epochs of 500 updates, of Diffusion-QL of 250.

    Rollouts take the policy's mode; Diffusion-QL's code has none there, and draws. Raises InputError for agents that DyDiff has
    no results of.
    """
    check(agent in BASE_AGENTS, "agent.kind", agent, f"one of {', '.join(BASE_AGENTS)} with DyDiff's published settings")
    interval, actions = (250, "sampled") if agent == "diffusion_ql" else (500, "mode")
    return {
        "synthesis": {"interval": interval, "world_model": {"actions": actions}, "dydiff": {"actions": actions}},
        "agent": {"updates": 2000 * interval, "updates_per_chunk": interval, agent: BASE_AGENTS[agent]},
    }
