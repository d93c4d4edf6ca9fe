"""Parses the single statements of hosts and volumes: device, disk, meta-disk, address.

Rules: syntax and what one statement alone can get wrong; no knowledge of its surroundings.
"""

from __future__ import annotations

import re

from replicator.config.lexer import Cursor, Token
from replicator.config.model import Address, MetaDisk
from replicator.config.options import is_ipv4, is_ipv6
from replicator.config.syntax import Device
from replicator.config.words import printable

MAX_MINOR = (1 << 20) - 1
MAX_VOLUME = 65535
MAX_META_INDEX = 65535
FAMILIES = {"ipv4": "ipv4", "ipv6": "ipv6", "ssocks": "ssocks", "sci": "ssocks", "sdp": "sdp"}


def parse_device(cursor: Cursor) -> Device:
    """`device NAME [minor N];` or `device minor N;`, the word `device` already read.

    A name is /dev/drbdN, or /dev/drbd_ANYTHING with a minor; /dev/ may be left out.
    """
    first = cursor.token
    name = "" if first.is_word("minor") else _device_name(cursor)
    minor: int | None = None
    if cursor.token.is_word("minor"):
        cursor.take()
        minor = cursor.integer("a minor number", 0, MAX_MINOR)
    cursor.expect(";")
    numbered = re.fullmatch(r"/dev/drbd([0-9]+)", name)
    if minor is None:
        if not numbered:
            raise cursor.source.error(
                first,
                f"device {name}: expected a minor number, in the name or after it",
                hint="write 'device /dev/drbdN;' or 'device NAME minor N;'",
            )
        minor = int(numbered[1]) if len(numbered[1]) < 10 else MAX_MINOR + 1
    _check_device(cursor, first, name, minor, numbered)
    return Device(name, minor)


def _device_name(cursor: Cursor) -> str:
    token = cursor.value("a device name or 'minor'")
    name = token.text if token.text.startswith("/dev/") else f"/dev/{token.text}"
    if not name.startswith("/dev/drbd") or not name.isprintable():
        raise cursor.source.expected(token, "a device name that begins with /dev/drbd")
    return name


def _check_device(
    cursor: Cursor, token: Token, name: str, minor: int, numbered: re.Match[str] | None
) -> None:
    if minor > MAX_MINOR:
        raise cursor.source.error(token, f"expected a minor number from 0 to {MAX_MINOR}")
    if numbered and int(numbered[1]) != minor:
        raise cursor.source.error(
            token,
            f"device {name} does not go with minor {minor}",
            hint=f"write 'device /dev/drbd{minor};' or use a name that begins with /dev/drbd_",
        )
    if name and not numbered and not name.startswith("/dev/drbd_"):
        raise cursor.source.error(
            token,
            f"device {name}: expected /dev/drbdN, or a name that begins with /dev/drbd_",
        )


def parse_disk_path(cursor: Cursor) -> str:
    """`disk PATH;`, the word `disk` already read."""
    token = cursor.value("the path of a block device or file, or '{'")
    _check_path(cursor, token)
    cursor.expect(";")
    return token.text


def parse_meta_disk(cursor: Cursor, *, flexible: bool) -> MetaDisk:
    """`internal;`, `PATH;` or `PATH [INDEX];`, the keyword already read."""
    token = cursor.value("internal, or the path of a block device or file")
    if token.text == "internal":
        cursor.expect(";")
        return MetaDisk("internal")
    _check_path(cursor, token)
    index = -1
    if not flexible and cursor.take_if("["):
        index = cursor.integer("a metadata slot", 0, MAX_META_INDEX)
        cursor.expect("]")
    cursor.expect(";")
    return MetaDisk("flexible" if index < 0 else "indexed", token.text, index)


def _check_path(cursor: Cursor, token: Token) -> None:
    if not token.text.startswith("/"):
        raise cursor.source.expected(
            token,
            "an absolute path",
            hint="write the path from the root, e.g. /dev/sda7 or /var/lib/replicator/r0.img",
        )
    if not token.text.isprintable():
        raise cursor.source.expected(token, "a path of printable characters in UTF-8")


def parse_address(cursor: Cursor) -> Address:
    """`[FAMILY] HOST:PORT`, an IPv6 host in brackets; up to and without what follows the port."""
    token = cursor.token
    family = "ipv4"
    if token.is_value and token.text in FAMILIES:
        family = FAMILIES[cursor.take().text]
    elif token.is_char("["):
        raise cursor.source.expected(
            token, "an IPv4 address", hint="write 'address ipv6 [...]:PORT' for IPv6"
        )
    host = _ipv6_host(cursor) if family == "ipv6" else _ipv4_host(cursor, token)
    if not cursor.token.is_char(":"):
        raise cursor.source.expected(
            cursor.token, "':'", hint="an address has a port, for example 'address 10.0.0.2:7789;'"
        )
    cursor.take()
    return Address(family, host, cursor.integer("a port", 1, 65535))


def _ipv4_host(cursor: Cursor, first: Token) -> str:
    token = cursor.token
    if not token.is_value or not is_ipv4(token.text):
        words = FAMILIES if token is first else ()
        raise cursor.source.expected(
            token, "an IPv4 address (names are not looked up)", words=words
        )
    return cursor.take().text


def _ipv6_host(cursor: Cursor) -> str:
    cursor.expect("[")
    first = cursor.token
    text = ""
    while cursor.token.is_value or cursor.token.is_char(":") or cursor.token.is_char("%"):
        if text and not cursor.token.joined:
            break
        text += cursor.take().text
    if not is_ipv6(text):
        raise cursor.source.error(first, f"expected an IPv6 address, found '{printable(text)}'")
    cursor.expect("]")
    return text
