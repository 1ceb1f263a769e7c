"""Runs cells on one device, each in a process of its own: a fork server, a supervisor, the evidence of a failure."""
