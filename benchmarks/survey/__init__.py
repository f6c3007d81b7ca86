"""Whether the map of networks by name comes out right: `python -m survey` in benchmarks/, or `make survey`."""
