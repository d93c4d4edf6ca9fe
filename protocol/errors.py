"""What can be wrong with bytes from the wire: every refusal is a WireError that says why.

Rules:
1. A message names the command, what was expected and what was found; the caller adds resource
   and peer, and ends the connection.
2. The class says what is wrong, not what to do about it: whether a node retries or stands alone
   is the engine's decision.
3. This file knows nothing of packets.
"""

from __future__ import annotations


class WireError(Exception):
    """Root of everything that decoding, or a handshake, refuses."""


class BadMagic(WireError):
    """The bytes at the start of a header are not the magic of the header format in force."""


class BadHeader(WireError):
    """The magic is right but another header field is not (the pad of an h100 header must be 0)."""


class BadLength(WireError):
    """A payload is shorter or longer than its command allows."""


class BadValue(WireError):
    """A field holds a value that no correct peer sends, or that we must not send."""


class UnknownCommand(WireError):
    """The command code means nothing in the protocol versions we speak."""


class WrongSocket(WireError):
    """A command of the data socket came in on the meta socket, or the reverse."""


class WrongPhase(WireError):
    """A known command at a time when it cannot be sent: before, or again after, the handshake."""


class Incompatible(WireError):
    """The two nodes have no protocol version in common."""


class AuthError(WireError):
    """The peer did not prove that it knows the shared secret."""
