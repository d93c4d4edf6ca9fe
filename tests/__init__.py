"""The tests of replicator: `unit`, `integration` (real programs and files) and `simulation`."""
