"""Random valid drbd.conf texts, and ways to make a valid one invalid: material for comparisons.

Rules: everything follows from one integer seed. Only what DRBD 8.4's own tool accepts too; the
expectations are in the tests.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from replicator.config.option_table import SECTIONS
from replicator.config.options import Kind, Option

HOSTS = ("alice", "bob", "carol", "node-1.example.com")
_SUFFIXES = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30, "K": 1 << 10, "g": 1 << 30}
# The manual page allows more of these than drbdadm does.
_LOWER_MAXIMUM = {"minor-count": 255}
# drbdadm drops it from its dump when this host does not have the other resource.
_LEFT_OUT = frozenset({"resync-after"})
_TEXTS = (
    *(
        "secret",
        "a b",
        "",
        'say "hi"',
        "back\\slash",
        "{;}#",
        "timeout",
        "disk",
        "7",
        "12k",
        "10.0.0.1",
    ),
    *("/usr/lib/drbd/notify.sh root", "tab\there", "x" * 60, "yes", "a=b"),
)


class Generator:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._minor = self.rng.randrange(0, 50)
        self._port = self.rng.randrange(1024, 60000)
        self._disk = 0

    def config(self) -> str:
        """A whole configuration."""
        names = self.rng.sample(["r0", "mail", "web-1", "a.b", "x_y", "two words", "disk", "9"], 3)
        names = names[: self.rng.randint(1, 3)]
        parts = ["global { disable-ip-verification; " + self._options("global", 0.3) + "}"]
        if self._chance(0.7):
            parts.append("common { " + self._common_body() + "}")
        parts += [self._resource(name) for name in names]
        if self._chance(0.2):
            parts.insert(1, 'skip anything { resource rx { "}" ; } }')
        return self._spread("\n".join(parts))

    def _chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def word(self, text: str) -> str:
        """`text` as the language wants it, sometimes with quotes it does not need."""
        plain = re.fullmatch(r"[A-Za-z/][A-Za-z0-9._/-]*", text) and text not in (
            "disk",
            "timeout",
            "yes",
        )
        if plain and self._chance(0.8):
            return text
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    def _spread(self, text: str) -> str:
        """The same tokens with other blanks, line breaks and comments between them."""
        pieces = re.findall(r'"(?:\\.|[^"\\])*"|\s+|[^\s"]+', text)
        blanks = (" ", "\n", "\t", "  ", "\n\n", " # a comment { \n", '\n\t# another; "\n ')
        return "".join(
            self.rng.choice(blanks) if piece.isspace() and self._chance(0.5) else piece
            for piece in pieces
        )

    # Sections of options

    def _options(self, section: str, density: float, without: frozenset[str] = frozenset()) -> str:
        chosen = [
            option
            for option in SECTIONS[section].values()
            if option.name not in without | _LEFT_OUT and self._chance(density)
        ]
        self.rng.shuffle(chosen)
        return "".join(self._statement(option) for option in chosen)

    def _statement(self, option: Option) -> str:
        name = option.name
        if option.aliases and self._chance(0.2):
            name = option.aliases[0]
        if option.kind is Kind.FLAG:
            return f"{name}; "
        if option.kind is Kind.BOOLEAN:
            forms = [f"{name};", f"{name} yes;", f"{name} no;"]
            if option.negatable:
                forms.append(f"no-{name};")
            return self.rng.choice(forms) + " "
        return f"{name} {self.value(option)}; "

    def value(self, option: Option) -> str:
        if option.kind is Kind.NUMBER:
            return self._number(option)
        if option.kind is Kind.CHOICE:
            choices = list(option.choices)
            choices += [one + "alice" for one in option.choice_prefixes]
            return self.rng.choice(choices)
        if option.kind is Kind.NAMES:
            return "alice"
        texts = [one for one in _TEXTS if len(one) <= option.max_length]
        return self.word(self.rng.choice(texts))

    def _number(self, option: Option) -> str:
        high = _LOWER_MAXIMUM.get(option.name, option.maximum)
        edge = self.rng.choice([option.minimum, high, None, None])
        value = self.rng.randint(option.minimum, high) if edge is None else edge
        suffix = self.rng.choice(list(_SUFFIXES))
        count = value * (option.unit.size or 1) // _SUFFIXES[suffix]
        back = -(-count * _SUFFIXES[suffix] // (option.unit.size or 1))
        # Plain integers only where drbdadm takes no suffix.
        if suffix and option.section != "global" and count and option.minimum <= back <= high:
            return f"{count}{suffix}"
        return str(value)

    def _syncer(self) -> tuple[str, frozenset[str]]:
        """A section `syncer` and the options in it."""
        options = [
            one
            for rows in SECTIONS.values()
            for one in rows.values()
            if one.syncer and one.name not in _LEFT_OUT
        ]
        chosen = self.rng.sample(options, self.rng.randint(1, 4))
        text = "".join(f"{one.syncer} {self._old_value(one)}; " for one in chosen)
        return f"syncer {{ {text}}} ", frozenset(one.name for one in chosen)

    def _old_value(self, option: Option) -> str:
        if option.kind is Kind.BOOLEAN:
            return self.rng.choice(["yes", "no"])
        return self.value(option)

    def _common_body(self) -> str:
        without: frozenset[str] = frozenset({"become-primary-on"})
        texts = []
        if self._chance(0.3):
            text, used = self._syncer()
            texts, without = [text], without | used
        if self._chance(0.3):
            texts.append(
                self.rng.choice(["protocol A; ", "protocol B; ", "protocol C; ", "protocol b; "])
            )
            without |= {"protocol"}
        for section in ("net", "disk", "options", "startup", "handlers"):
            if self._chance(0.5):
                texts.append(f"{section} {{ {self._options(section, 0.3, without)}}} ")
        self.rng.shuffle(texts)
        return "".join(texts)

    # Resources

    def _resource(self, name: str) -> str:
        body = self._common_body()
        if self._chance(0.3):
            body += "ignore-on zoe; "
        style = self.rng.choice(["implicit", "inherited", "volumes", "shared volumes", "floating"])
        if style == "floating":
            return f"resource {self.word(name)} {{ {self._fields()}{self._floating()}{body}}}"
        sides = self._sides()
        family = self.rng.choice(["ipv4", "ipv4", "ipv6"])
        numbers = self.rng.sample(range(20), self.rng.randint(1, 3))
        text = ""
        if style == "inherited":
            text = self._fields()
        elif style == "shared volumes":
            text = self._shared(numbers)
        for names in sides:
            host = ""
            if style == "implicit":
                host = self._fields()
            elif style == "volumes":
                host = self._volumes(numbers)
            parts = [host, f"address {self._address(family)}; "]
            self.rng.shuffle(parts)
            text += f"on {' '.join(self.word(one) for one in names)} {{ {''.join(parts)}}} "
        if self._chance(0.5) and "startup" not in body:
            body += "startup { become-primary-on alice; } "
        return f"resource {self.word(name)} {{ {text}{body}}}"

    def _sides(self) -> list[tuple[str, ...]]:
        rest = self.rng.sample(HOSTS[1:], 3)
        form = self.rng.random()
        if form < 0.7:
            sides: list[tuple[str, ...]] = [("alice",), (rest[0],)]
        elif form < 0.85:
            sides = [("alice", rest[0]), (rest[1],)]
        else:
            sides = [("alice",), (rest[0],), (rest[1],)]
        self.rng.shuffle(sides)
        return sides

    def _device(self) -> str:
        self._minor += self.rng.randint(1, 5)
        minor = self._minor
        return self.rng.choice(
            [
                f"device /dev/drbd{minor}; ",
                f"device minor {minor}; ",
                f"device drbd{minor} minor {minor}; ",
                f"device {self.word(f'/dev/drbd_v{minor}')} minor {minor}; ",
            ]
        )

    def _disk_path(self) -> str:
        self._disk += 1
        form = self.rng.choice(
            ["/dev/sd{}", "/var/lib/r {}.img", "/dev/mapper/vg-lv{}", "/dev/a:{}"]
        )
        return f"disk {self.word(form.format(self._disk))}; "

    def _meta_disk(self) -> str:
        self._disk += 1
        path = self.word(f"/dev/md{self._disk}")
        return self.rng.choice(
            [
                "meta-disk internal; ",
                "flexible-meta-disk internal; ",
                f"meta-disk {path}; ",
                f"flexible-meta-disk {path}; ",
                f"meta-disk {path}[{self.rng.randint(0, 9)}]; ",
                f"meta-disk {path} [ {self.rng.randint(0, 9)} ]; ",
            ]
        )

    def _fields(self) -> str:
        fields = [self._device(), self._disk_path(), self._meta_disk()]
        self.rng.shuffle(fields)
        return "".join(fields)

    def _shared(self, numbers: list[int]) -> str:
        return "".join(f"volume {number} {{ {self._fields()}}} " for number in numbers)

    def _volumes(self, numbers: list[int]) -> str:
        text = ""
        for number in self.rng.sample(numbers, len(numbers)):
            fields = [self._device(), self._disk_path(), self._meta_disk()]
            if self._chance(0.3):
                fields.append(f"disk {{ {self._options('disk', 0.2)}}} ")
            self.rng.shuffle(fields)
            text += f"volume {number} {{ {''.join(fields)}}} "
        return text

    def _address(self, family: str) -> str:
        self._port += 1
        if family == "ipv6":
            host = self.rng.choice(["fd01::{:x}", "fe80::{:x}%eth0", "2001:db8:0:1::{:x}"])
            return f"ipv6 [{host.format(self.rng.randint(1, 65535))}]:{self._port}"
        prefix = self.rng.choice(["", "ipv4 "])
        return f"{prefix}10.0.{self.rng.randint(0, 255)}.{self.rng.randint(1, 254)}:{self._port}"

    def _floating(self) -> str:
        return f"floating {self._address('ipv4')}; floating {self._address('ipv4')} {{ }} "


def _replace_one(pattern: str, replacement: str) -> Callable[[str, random.Random], str]:
    """Replace one occurrence, chosen at random."""

    def change(text: str, rng: random.Random) -> str:
        found = rng.choice(list(re.finditer(pattern, text)))
        return text[: found.start()] + found.expand(replacement) + text[found.end() :]

    return change


_BASE = """\
global { disable-ip-verification; usage-count no; }
common { net { timeout 60; use-rle yes; } handlers { split-brain "a"; } }
resource r0 {
    disk { resync-rate 10M; }
    startup { wfc-timeout 10; }
    on alice { device minor 0; disk /dev/a; meta-disk internal; address 10.0.0.1:7789; }
    on bob { device minor 0; disk /dev/a; meta-disk internal; address 10.0.0.2:7789; }
}
resource r1 {
    protocol C;
    volume 0 { device minor 1; disk /dev/b; meta-disk /dev/m [0]; }
    volume 1 { device minor 2; disk /dev/c; meta-disk /dev/m [1]; }
    on alice { address ipv6 [fd01::1]:7790; }
    on bob { address ipv6 [fd01::2]:7790; }
}
"""


def base() -> str:
    """The valid configuration that every mutation of MUTATIONS starts from."""
    return _BASE


MUTATIONS: dict[str, Callable[[str, random.Random], str]] = {
    "a semicolon is missing": _replace_one(r";(?= [a-z])", ""),
    "an opening brace is missing": _replace_one(r"(?<=\w) \{", " "),
    "a closing brace too many": _replace_one(r"\}\n", "}}\n}\n"),
    "a keyword is misspelled": _replace_one(
        r"\b(resource|common|device|disk|address|volume|handlers|net|timeout|resync-rate)\b", r"\1x"
    ),
    "a keyword has the wrong case": _replace_one(r"\bresource\b", "Resource"),
    "an option is in the wrong section": _replace_one(r"use-rle yes", "wfc-timeout 3"),
    "a string does not end": _replace_one(r'"a"', '"a'),
    "a string spans lines": _replace_one(r'"a"', '"a\nb"'),
    "a value has a strange character": _replace_one(r"/dev/[abc]\b", r"/dev/a+b"),
    "a number is too large": _replace_one(r"timeout (60|10)", "timeout 300001"),
    "a number is too small": _replace_one(r"resync-rate 10M", "resync-rate 0"),
    "a number is no number": _replace_one(r"timeout (60|10)", "timeout soon"),
    "a suffix is unknown": _replace_one(r"10M", "10T"),
    "a boolean is neither yes nor no": _replace_one(r"use-rle yes", "use-rle on"),
    "a protocol does not exist": _replace_one(r"protocol C", "protocol D"),
    "a port is zero": _replace_one(r":7789", ":0"),
    "a port is too large": _replace_one(r":77(89|90)", ":65536"),
    "a port is missing": _replace_one(r":7789", ""),
    "an address is a name": _replace_one(r"10\.0\.0\.[12]", "localhost"),
    "an IPv6 address has no brackets": _replace_one(r"\[(fd01::[12])\]", r"\1"),
    "an IPv6 address is none": _replace_one(r"fd01::[12]", "zz"),
    "a statement is missing": _replace_one(
        r"(device minor [012]|disk /dev/[abc]|meta-disk internal|address [^;]*); ", ""
    ),
    "a statement is there twice": _replace_one(
        r"((?:device minor 0|disk /dev/a|meta-disk internal|address 10[^;]*); )", r"\1\1"
    ),
    "a section is there twice": _replace_one(r"    disk \{[^}]*\}\n", "disk { } disk { }\n"),
    "the protocol is there twice": _replace_one(r"protocol C;", "protocol C; protocol C;"),
    "common is there twice": _replace_one(r"(?m)^common", "common { } common"),
    "global is there twice": _replace_one(r"(?m)^global", "global { } global"),
    "a resource is there twice": _replace_one(r"resource r1", "resource r0"),
    "a host is there twice": _replace_one(r"on bob", "on alice"),
    "a minor is used twice": _replace_one(r"minor [12]", "minor 0"),
    "an address is used twice": _replace_one(r"10\.0\.0\.2", "10.0.0.1"),
    "a metadata slot is used twice": _replace_one(r"\[1\]", "[0]"),
    "a metadata slot is negative": _replace_one(r"\[1\]", "[-1]"),
    "a minor is negative": _replace_one(r"minor 0", "minor -1"),
    "a device has no number": _replace_one(r"minor 0", "/dev/drbd_x"),
    "a device has another name": _replace_one(r"minor 0", "/dev/sda minor 0"),
    "a device contradicts its minor": _replace_one(r"minor 0", "/dev/drbd1 minor 0"),
    "a volume is on one side only": _replace_one(
        r"on bob \{ address",
        "on bob { volume 5 { device minor 9; disk /x; meta-disk internal; } address",
    ),
    "volumes are written in both ways": _replace_one(r"    protocol C", "disk /dev/y; protocol C"),
    "a file to include is missing": _replace_one(
        r"\Aglobal", 'include "no-such-file.conf";\nglobal'
    ),
    "both become primary": _replace_one(r"wfc-timeout 10", "become-primary-on both"),
    "a stranger becomes primary": _replace_one(r"wfc-timeout 10", "become-primary-on zoe"),
    "a handler is unknown": _replace_one(r"split-brain", "no-such-handler"),
    "a resource has no name": _replace_one(r"resource r1", "resource"),
}
"""What an administrator can get wrong; each makes base() invalid, for drbdadm too."""
