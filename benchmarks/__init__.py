"""Side by side with peers: `python -m benchmarks.NAME` measures both in one run and writes `benchmarks/results/`."""
