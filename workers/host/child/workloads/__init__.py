"""What a child does with an open session, one module for each workload (`workers.modes.workloads`)."""
