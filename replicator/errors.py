"""Every error the product can show a person, each class with the exit code its command ends with.

Rules:
1. A message names the resource, the field, what was expected and what was found, and where there
   is one the next safe command.
2. The class says whose business the error is (usage, configuration, disk, state, peer, daemon),
   and carries the exit code; codes are those that callers of drbdadm already know.
3. This file knows nothing of the rest of the program.
"""

from __future__ import annotations


class ReplicatorError(Exception):
    """Root of all errors that are shown as one message, never as a traceback."""

    exit_code = 20

    def __init__(self, message: str, *, hint: str = "") -> None:
        """message: what is wrong; hint: the next safe command or thing to do, "" if there is none."""
        super().__init__(message)
        self.message = message
        self.hint = hint

    def name_target(self, resource: str, volume: int | None = None) -> None:
        """Put the names into a hint that says RESOURCE or RESOURCE/VOLUME, because who wrote it knew
        only the device; volume: None if several are meant. Hints without these words stay."""
        whole = resource if volume is None else f"{resource}/{volume}"
        self.hint = self.hint.replace("RESOURCE/VOLUME", whole).replace("RESOURCE", resource)

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(ReplicatorError):
    """Unknown command, option or resource; the command line makes no sense."""

    exit_code = 1


class ConfigSyntaxError(ReplicatorError):
    """The configuration file cannot be parsed."""

    exit_code = 2


class WaitTimeout(ReplicatorError):
    """wait-connect, wait-sync: the time given ran out (drbdsetup's exit code)."""

    exit_code = 5


class ConfigError(ReplicatorError):
    """The configuration parses but says something impossible; or a request was refused for its arguments."""

    exit_code = 10


class StateRefused(ReplicatorError):
    """A state change was refused, here or by the peer. `code` is DRBD's negative state-change code."""

    exit_code = 11

    def __init__(self, message: str, *, code: int = -10, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class NoDiskError(ReplicatorError):
    """There is no local disk for what was asked (missing, unreadable, detached)."""

    exit_code = 16


class WorseThanOutdated(StateRefused):
    """State-change code -16: data that are Inconsistent, or missing, cannot be Outdated. The exit code
    is drbdadm's, by which fencing programs tell it from a refusal."""

    exit_code = 5

    def __init__(self, message: str, *, code: int = -16, hint: str = "") -> None:
        super().__init__(message, code=code, hint=hint)


class NoUsableDataError(StateRefused):
    """State-change code -2: needs access to UpToDate data."""

    exit_code = 17

    def __init__(self, message: str, *, code: int = -2, hint: str = "") -> None:
        super().__init__(message, code=code, hint=hint)


class MetadataError(ReplicatorError):
    """Metadata is missing, foreign, damaged or of another size."""

    exit_code = 10


class NoMetadataError(MetadataError):
    """An offline metadata command found nothing valid to work on (drbdmeta's exit code)."""

    exit_code = 1


class DataFoundError(ReplicatorError):
    """create-md found something that would be destroyed (drbdmeta's exit code)."""

    exit_code = 40


class DeclinedError(ReplicatorError):
    """A question was answered with no."""

    exit_code = 1


class DaemonError(ReplicatorError):
    """The resource daemon is not running, does not answer in time, or could not be started."""

    exit_code = 20


class DeviceError(ReplicatorError):
    """The kernel device (nbd, loop, FUSE) could not be attached or detached."""

    exit_code = 20
