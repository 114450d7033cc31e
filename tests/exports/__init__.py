"""Exports in the programs that they are for. `make test-exports` builds the environments."""
