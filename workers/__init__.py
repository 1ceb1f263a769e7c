"""One device: the actor that owns it, the child process that runs one cell, meters, modes, the decode engines."""
