"""Renders what a resource tells about itself: /proc/drbd text, status for people, JSON.

Rules: pure text from `replicator.engine.snapshot` values; nothing here reads a file, a clock or a
socket, so the same snapshot always gives the same text.
"""

from replicator.status.proc import proc_text

__all__ = ["proc_text"]
