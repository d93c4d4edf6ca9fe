"""The `replicator` command: argument parsing, one handler per command, terminal output.

Rules: standard output carries the answer and nothing else; everything about it goes to standard
error. Every command ends in bounded time with an exit code that callers of drbdadm know.
"""
