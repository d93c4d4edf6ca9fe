"""Tests with the real parts: nbdkit, libnbd, drbd-utils, files, sockets and processes."""
