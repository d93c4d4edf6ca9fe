"""The real engine of both nodes in one process, on virtual time, pretended disks and networks."""
