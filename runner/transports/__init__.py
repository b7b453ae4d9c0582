"""Brokers. One transport a file, all held to `runner.testing.TransportContract`."""
