"""The rows of the speed table of an accelerator (`benchmarks.accelerator`)."""
