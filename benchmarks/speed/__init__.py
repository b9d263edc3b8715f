"""How fast: agents, denoiser, sampling, refreshes, evaluation; rows and bounds of the accelerator table."""
