"""What the pretend engine does at which offset, for it and for the tests that use it. Bytes."""

SIZE = 8 << 20
FAILS_AT = 1 << 20
"""Writes here fail with ENOSPC, reads with EIO."""
HANGS_AT = 2 << 20
"""Requests here are never answered."""
BREAKS_AT = 3 << 20
"""Requests here make the engine raise."""
