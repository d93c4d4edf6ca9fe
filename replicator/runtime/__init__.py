"""How a resource runs: event loop, disks, TCP, timers, control socket, daemon, kernel device.

Rules: everything here adapts the real world to `replicator.engine.ports`; no replication policy.
"""
