"""What a configuration option is: its type, range, default and effect; and how its text is read.

Rules: knows one option at a time and nothing of sections, inheritance or files. The options
themselves are data, in `option_table`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from replicator.config.words import printable
from replicator.errors import ConfigError

Value = int | bool | str | tuple[str, ...]


class Kind(Enum):
    NUMBER = "number"
    BOOLEAN = "boolean"
    """`name;`, `name yes;` or `name no;`"""
    FLAG = "flag"
    """`name;` only."""
    CHOICE = "choice"
    TEXT = "text"
    NAMES = "names"
    """One or more words."""
    ENDPOINT = "endpoint"
    """`unix` or HOST:PORT."""


class Unit(NamedTuple):
    """What a number without suffix counts."""

    name: str
    """For people: "0.1 s", "KiB/s"..."""
    size: int = 0
    """In bytes: 1, 512 or 1024; 0 when it does not count bytes."""


NO_UNIT = Unit("")


class Effect(Enum):
    YES = "yes"
    NO = "no"
    """Accepted with a warning: the administrator expects what will not happen."""
    MOOT = "moot"
    """Accepted in silence: it speaks of something that does not exist here (a kernel module...)."""


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table."""

    section: str
    name: str
    kind: Kind
    default: Value
    meaning: str
    effect: Effect = Effect.YES
    minimum: int = 0
    maximum: int = 0
    """Bounds of a NUMBER, in its own unit, both allowed."""
    unit: Unit = NO_UNIT
    choices: tuple[str, ...] = ()
    choice_prefixes: tuple[str, ...] = ()
    """A choice may also be one of these followed by a name."""
    any_case: bool = False
    max_length: int = 1024
    negatable: bool = False
    """`no-NAME;` is an old spelling of `NAME no;`."""
    aliases: tuple[str, ...] = ()
    syncer: str = ""
    """Its name in the 8.3 section `syncer`, "" if it has none."""

    @property
    def field(self) -> str:
        """Name of the attribute in the option class."""
        return self.name.replace("-", "_")

    @property
    def effective(self) -> bool:
        return self.effect is not Effect.NO

    @property
    def range_text(self) -> str:
        """The allowed values, for people."""
        if self.kind is Kind.NUMBER:
            return f"{self.minimum} to {self.maximum}"
        if self.kind is Kind.CHOICE:
            return ", ".join(self.choices + tuple(f"{one}NAME" for one in self.choice_prefixes))
        if self.kind is Kind.BOOLEAN:
            return "yes, no"
        if self.kind is Kind.ENDPOINT:
            return "unix, HOST:PORT"
        return {Kind.FLAG: "no value", Kind.NAMES: "host names", Kind.TEXT: "text"}[self.kind]


_NUMBER = re.compile(r"(-?[0-9]{1,30})([A-Za-z]?)")
_SUFFIX = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def read_value(option: Option, text: str) -> Value:
    """The typed value of one option's text.

    Raises ConfigError whose message begins with the option's name and says what was expected and
    found; the caller adds the place.
    """
    if option.kind is Kind.NUMBER:
        return _read_number(option, text)
    if option.kind in (Kind.BOOLEAN, Kind.FLAG):
        return _read_boolean(option, text)
    if option.kind is Kind.CHOICE:
        return _read_choice(option, text)
    if option.kind is Kind.ENDPOINT:
        return _read_endpoint(option, text)
    if option.kind is Kind.NAMES:
        return tuple(text.split())
    return _read_text(option, text)


def _refuse(option: Option, expected: str, found: str, hint: str = "") -> ConfigError:
    return ConfigError(f"{option.name}: expected {expected}, found '{printable(found)}'", hint=hint)


def _read_number(option: Option, text: str) -> int:
    unit = f", in units of {option.unit.name}" if option.unit.name else ""
    expected = f"a number from {option.minimum} to {option.maximum}{unit}"
    match = _NUMBER.fullmatch(text)
    suffix = match[2].lower() if match else ""
    if not match or (suffix and suffix not in _SUFFIX and suffix != "s"):
        hint = "known suffixes are K, M and G (powers of 1024)" if text[:1].isdigit() else ""
        raise _refuse(option, expected, text, hint)
    value = int(match[1])
    if suffix == "s" and not option.unit.size:
        raise _refuse(option, expected, text, "the suffix s means sectors of 512 bytes")
    if suffix and option.unit.size:
        # Rounded up, as drbdadm does.
        value = -(-value * (512 if suffix == "s" else _SUFFIX[suffix]) // option.unit.size)
    elif suffix:
        value *= _SUFFIX[suffix]
    if not option.minimum <= value <= option.maximum:
        raise _refuse(option, expected, text)
    return value


def _read_boolean(option: Option, text: str) -> bool:
    if text not in ("yes", "no"):
        raise _refuse(option, "yes or no", text)
    return text == "yes"


def _read_choice(option: Option, text: str) -> str:
    folded = text.upper() if option.any_case else text
    if folded in option.choices or folded == option.default:
        return folded
    if any(text.startswith(one) and len(text) > len(one) for one in option.choice_prefixes):
        return text
    raise _refuse(option, f"one of {option.range_text}", text)


def _read_text(option: Option, text: str) -> str:
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise _refuse(option, "text in UTF-8", text) from None
    if length > option.max_length:
        raise ConfigError(
            f"{option.name}: expected at most {option.max_length} bytes, found {length}"
        )
    return text


def _read_endpoint(option: Option, text: str) -> str:
    if text == "unix":
        return text
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        valid_host = is_ipv6(host[1:-1])
    else:
        valid_host = bool(re.fullmatch(r"[A-Za-z0-9._-]+", host))
    if not colon or not valid_host or not _is_port(port):
        raise _refuse(option, "unix, or HOST:PORT with a port from 1 to 65535", text)
    return text


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 8 and 1 <= int(text) <= 65535


def is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def is_ipv6(text: str) -> bool:
    """With or without a %scope."""
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
