"""Two or more runs side by side: what differs between their sweeps, and which differences exceed the noise."""
