"""The rows of the accelerator's speed table (`benchmarks.accelerator`)."""
