"""replicator: network RAID-1 for block devices, in user space, with DRBD 8.4's words and formats."""

__version__ = "0.1.0"
