"""Speed measurements; `python -m benchmarks` lists them."""
