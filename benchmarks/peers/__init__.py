"""Other systems, each in a file of its own. They run in an environment of their own: see `benchmarks/peer.py`."""
