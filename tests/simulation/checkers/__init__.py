"""Independent accounts of what must never be false, kept beside a history while it runs.

They share no code with the engine: metadata is decoded from the pretended disks by the decoder here,
and the engine is looked at only through `observe`.
"""


class Violation(AssertionError):
    """Something that must never be false was."""
