"""Repeatable measurements of replicator beside its peers, on one machine: `make bench`."""
