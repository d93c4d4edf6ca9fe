"""The wire: DRBD 8.4's peer protocol. Bytes in, messages out; no I/O, clock or state machine."""
