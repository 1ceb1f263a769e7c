"""Drives a sweep: which cell runs on which device, and what follows from its attempt. Begin at `run.run_sweep`."""
