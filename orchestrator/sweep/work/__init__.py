"""What is to be done on each kind of device: the plan's cells, the probes of the searches, and their order."""
