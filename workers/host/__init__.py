"""What stands between a device and the processes that use it up: a fork server, a watch, the evidence."""
