"""What flowrun costs, measured: `make bench`, or `make bench CASE=startup`."""
