"""Guidance of a diffusion model towards a policy: `base` has the contract, `kinds` the methods by name."""
