"""HTTP in front of events and commands, and the health of a runner."""
