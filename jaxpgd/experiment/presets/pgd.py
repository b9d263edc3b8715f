"""Policy-Guided Diffusion (Jackson et al., arXiv 2404.06356): its hyperparameters, and what its released code does instead."""

from typing import Any

_CHURN = {"churn": 80.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003}

PAPER: dict[str, Any] = {
    "data": {"window": 32, "stride": 8, "allow_timeout_end": False, "terminal_repeats": 1, "done_scale": 0.0},
    "denoiser": {
        "features": 1024, "blocks": 3, "norm": "sequence",
        "block": "plain", "sigma_data": 1.0, "p_mean": -1.2, "p_std": 1.2, "p_high": 0.0,
        "epochs": 10_000, "batch_size": 32, "peak_lr": 2e-3, "warmup_fraction": 0.1, "initial_lr_fraction": 0.1,
        "optimiser": "adam", "ema_width": 0.0, "ema": 0.995, "ema_every": 10,
    },
    "sampler": {
        "kind": "heun", "steps": 256, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0,
        "heun": {**_CHURN, "predictor": "churned"}, "euler": {**_CHURN, "predictor": "churned"}, "ancestral": _CHURN,
    },
    "guidance": {
        "kind": "published", "coefficient": 1.0, "published": {"at": "denoised", "normalise": "safe", "sine": 0.3},
    },
    "synthesis": {
        "regime": "periodic", "trajectories": 8192, "interval": 10_000, "synthetic_ratio": 0.9375, "first_unguided": True,
    },
    "agent": {
        "updates": 1_000_000, "batch_size": 256, "updates_per_chunk": 10_000, "td3_bc": {"policy_std": 1.0},
        "bc": {"policy_std": 1.0}, "diffusion_ql": {"policy_std": 1.0},
    },
}  # fmt: skip

# What PGD's released code does at its defaults, where that changes results; docs/presets.md lists the rest.
OFFICIAL: dict[str, Any] = {
    **PAPER,
    "denoiser": {**PAPER["denoiser"], "norm": "step"},
    "sampler": {
        **PAPER["sampler"],
        "heun": {**_CHURN, "predictor": "unchurned"}, "euler": {**_CHURN, "predictor": "unchurned"},
    },
    "guidance": {**PAPER["guidance"], "published": {"at": "noised", "normalise": "none", "sine": 0.3}},
    "synthesis": {**PAPER["synthesis"], "length": 129, "drop_last": True, "after_terminal": True},
    "agent": {
        **PAPER["agent"], "normalise_obs": False,
        "td3_bc": {"policy_std": 1.0, "lr": 1e-3, "actor_first": True, "init": "lecun_normal"},
        "iql": {"lr": 1e-3, "stale_value": True, "init": "lecun_normal"},
    },
}  # fmt: skip
