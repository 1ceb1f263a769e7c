"""The driver of a sweep: what waits, who runs it, what an attempt means for the rest. See `run.run_sweep`."""
