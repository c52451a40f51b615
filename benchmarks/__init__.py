"""Benchmarks: each compares something with a peer or a floor in one run. `python -m benchmarks` runs them."""
