"""Programs that measure speed and memory. Run them from the root of the repository: ``python -m benchmarks.speed``."""
