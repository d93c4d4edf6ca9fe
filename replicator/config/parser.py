"""drbd.conf grammar: tokens to syntax tree, by recursive descent.

Rules: knows which section may stand where and what may appear once; includes are handed to the
caller's function. Inheritance and everything that spans sections is `resolve` and `check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from replicator.config.lexer import Cursor, Source, Token, TokenKind
from replicator.config.model import Where
from replicator.config.option_table import SECTIONS
from replicator.config.section_parser import parse_section, parse_setting
from replicator.config.statements import (
    MAX_VOLUME,
    parse_address,
    parse_device,
    parse_disk_path,
    parse_meta_disk,
)
from replicator.config.syntax import HostPart, ResourcePart, Tree, VolumePart
from replicator.config.words import printable
from replicator.errors import ConfigSyntaxError

Include = Callable[[str, Callable[[str], ConfigSyntaxError]], None]
"""include(pattern, make_error): parse the files of a pattern; make_error(text) points at it."""

_TOP = ("global", "common", "resource", "include", "skip")
_OPTION_SECTIONS = ("net", "disk", "options", "startup", "handlers", "replicator", "syncer")
_STATEMENTS = ("device", "disk", "meta-disk", "flexible-meta-disk")
_COMMON = (*_OPTION_SECTIONS, "protocol", "proxy")
_RESOURCE = (
    *_COMMON,
    *_STATEMENTS,
    "on",
    "floating",
    "volume",
    "stacked-on-top-of",
    "ignore-on",
)
_HOST = (*_STATEMENTS, "address", "volume", "options", "replicator", "proxy")
MAX_NAME = 127


def parse_file(source: Source, tree: Tree, include: Include) -> None:
    """Add one file's content to `tree`. Raises ConfigSyntaxError or ConfigError."""
    _FileParser(source, tree, include).parse()


class _Once:
    """Refuses the second of what may be there once."""

    def __init__(self, cursor: Cursor, title: str) -> None:
        self._cursor = cursor
        self._title = title
        self._seen: dict[str, Where] = {}

    def check(self, token: Token, what: str) -> None:
        if what in self._seen:
            raise self._cursor.source.error(
                token,
                f"{what} is given twice in {self._title}; first at {self._seen[what]}",
                hint="keep one of them",
            )
        self._seen[what] = self._cursor.where(token)


class _FileParser:
    def __init__(self, source: Source, tree: Tree, include: Include) -> None:
        self._cursor = Cursor(source)
        self._source = source
        self._tree = tree
        self._include = include

    def parse(self) -> None:
        actions: dict[str, Callable[[Token], None]] = {
            "global": self._global,
            "common": self._common,
            "resource": self._resource,
            "include": self._include_statement,
            "skip": self._skip,
        }
        while self._cursor.token.kind is not TokenKind.END:
            token = self._keyword(_TOP, "")
            actions[token.text](token)

    def _keyword(self, words: Iterable[str], title: str) -> Token:
        """Take the next token, which must be one of `words`."""
        token = self._cursor.token
        words = tuple(words)
        if token.kind is not TokenKind.WORD or token.text not in words:
            place = f" in {title}" if title else ""
            hint = "one of: " + ", ".join(words)
            if token.kind is TokenKind.END:
                hint = f"a closing '}}' is missing{place}"
            raise self._source.expected(token, f"a keyword{place}", words=words, hint=hint)
        return self._cursor.take()

    def _warn(self, where: Where, text: str) -> None:
        self._tree.warnings.append(f"{where}: {text}")

    def _global(self, token: Token) -> None:
        tree = self._tree
        if tree.global_where:
            raise self._source.error(
                token, f"there is more than one global section; first at {tree.global_where}"
            )
        tree.global_where = self._cursor.where(token)
        sections = {"global": tree.global_settings}
        parse_section(self._cursor, "global", "global section", sections, tree.warnings)

    def _common(self, token: Token) -> None:
        tree = self._tree
        if tree.common:
            raise self._source.error(
                token, f"there is more than one common section; first at {tree.common.where}"
            )
        tree.common = ResourcePart("", self._cursor.where(token))
        self._resource_body(tree.common, _COMMON)

    def _resource(self, token: Token) -> None:
        name = self._cursor.value("a resource name")
        self._check_resource_name(name)
        part = ResourcePart(name.text, self._cursor.where(token))
        other = self._tree.resources.get(part.name)
        if other:
            raise self._source.error(
                name, f"resource {part.name} is defined twice; first at {other.where}"
            )
        self._tree.resources[part.name] = part
        self._resource_body(part, _RESOURCE)

    def _check_resource_name(self, token: Token) -> None:
        name, problem = token.text, ""
        if not name:
            problem = "is empty"
        elif name == "all":
            problem = "is reserved: it means every resource on the command line"
        elif "/" in name or not name.isprintable() or name[0] in ".-":
            problem = "must not contain '/', nor begin with '.' or '-'"
        elif len(name.encode("utf-8", "surrogateescape")) > MAX_NAME:
            problem = f"is longer than {MAX_NAME} bytes"
        if problem:
            raise self._source.error(token, f"resource name '{printable(name)}' {problem}")

    def _include_statement(self, token: Token) -> None:
        first = self._cursor.token
        pattern = self._cursor.joined_text()
        if not pattern:
            raise self._source.expected(first, "a file name or pattern")
        self._cursor.expect(";")
        self._include(pattern, lambda problem: self._source.error(first, problem))

    def _skip(self, token: Token) -> None:
        """`skip anything { ... }`: braces are counted, nothing else is looked at."""
        while not self._cursor.token.is_char("{"):
            if self._cursor.token.kind is TokenKind.END:
                raise self._source.expected(self._cursor.token, "'{' after skip")
            self._cursor.take()
        self._skip_braces()

    def _skip_braces(self) -> None:
        depth = 0
        while True:
            token = self._cursor.take()
            if token.kind is TokenKind.END:
                raise self._source.expected(token, "'}' that ends the section")
            depth += token.is_char("{") - token.is_char("}")
            if depth == 0:
                return

    def _resource_body(self, part: ResourcePart, words: tuple[str, ...]) -> None:
        once = _Once(self._cursor, part.title)
        self._cursor.expect("{")
        while not self._cursor.take_if("}"):
            token = self._keyword(words, part.title)
            if token.text in ("on", "floating", "stacked-on-top-of"):
                part.hosts.append(self._host(token, part))
            elif token.text == "volume":
                self._volume(part.volumes, part.title)
            elif token.text == "proxy":
                self._warn(self._cursor.where(token), f"section proxy ({part.title}) is ignored")
                self._skip_braces_after_section()
            elif token.text == "ignore-on":
                self._ignore_on(token, part)
            elif token.text == "protocol":
                once.check(token, "protocol")
                self._protocol(token, part)
            elif self._is_section(token):
                once.check(token, f"section {token.text}")
                parse_section(
                    self._cursor, token.text, part.title, part.sections, self._tree.warnings
                )
            else:
                part.implicit = self._implicit(part.implicit, token, once)

    def _is_section(self, token: Token) -> bool:
        """`disk {` is a section, `disk PATH;` a statement."""
        if token.text == "disk":
            return self._cursor.token.is_char("{")
        return token.text in _OPTION_SECTIONS

    def _protocol(self, token: Token, part: ResourcePart) -> None:
        setting = parse_setting(self._cursor, token, SECTIONS["net"]["protocol"])
        settings = part.sections.setdefault("net", {})
        settings.pop("protocol", None)
        settings["protocol"] = setting

    def _ignore_on(self, token: Token, part: ResourcePart) -> None:
        self._cursor.value("a host name")
        self._cursor.expect(";")
        self._warn(self._cursor.where(token), f"ignore-on ({part.title}) is obsolete and ignored")

    def _skip_braces_after_section(self) -> None:
        while self._cursor.token.is_value:
            self._cursor.take()
        if not self._cursor.token.is_char("{"):
            raise self._source.expected(self._cursor.token, "'{'")
        self._skip_braces()

    def _host(self, token: Token, resource: ResourcePart) -> HostPart:
        host = HostPart(token.text, (), self._cursor.where(token))
        if token.text == "floating":
            host.address = parse_address(self._cursor)
            if self._cursor.take_if(";"):
                return host
        else:
            host.names = self._host_names(token)
        self._host_body(host, f"{resource.title}, {host.title}")
        return host

    def _host_names(self, keyword: Token) -> tuple[str, ...]:
        what = "a resource name" if keyword.text == "stacked-on-top-of" else "a host name"
        tokens = [self._cursor.value(what)]
        while self._cursor.token.is_value:
            tokens.append(self._cursor.take())
        for token in tokens:
            if not token.text or not token.text.isprintable():
                raise self._source.error(token, f"expected {what}, found an empty or odd name")
        return tuple(token.text for token in tokens)

    def _host_body(self, host: HostPart, title: str) -> None:
        once = _Once(self._cursor, title)
        self._cursor.expect("{")
        while not self._cursor.take_if("}"):
            token = self._keyword(_HOST, title)
            if token.text == "volume":
                self._volume(host.volumes, title)
            elif token.text == "proxy":
                host.proxy = self._cursor.where(token)
                self._skip_braces_after_section()
            elif token.text == "address":
                once.check(token, "address")
                if host.kind == "floating":
                    raise self._source.error(token, f"{title} has its address in its head already")
                host.address = parse_address(self._cursor)
                self._cursor.expect(";")
            elif token.text in ("options", "replicator"):
                once.check(token, f"section {token.text}")
                parse_section(self._cursor, token.text, title, host.sections, self._tree.warnings)
            elif self._is_section(token):
                raise self._source.error(
                    token,
                    f"disk options cannot stand directly in {title}",
                    hint="put them in the resource, or in a volume section",
                )
            else:
                host.implicit = self._implicit(host.implicit, token, once)

    def _volume(self, volumes: dict[int, VolumePart], title: str) -> None:
        token = self._cursor.token
        number = self._cursor.integer("a volume number", 0, MAX_VOLUME)
        title = f"{title}, volume {number}"
        if number in volumes:
            raise self._source.error(
                token, f"{title} is given twice; first at {volumes[number].where}"
            )
        volume = volumes[number] = VolumePart(number, self._cursor.where(token))
        once = _Once(self._cursor, title)
        self._cursor.expect("{")
        while not self._cursor.take_if("}"):
            token = self._keyword(_STATEMENTS, title)
            if self._is_section(token):
                once.check(token, "section disk")
                sections = {"disk": volume.settings}
                parse_section(self._cursor, "disk", title, sections, self._tree.warnings)
            else:
                self._statement(volume, token, once)

    def _implicit(self, volume: VolumePart | None, token: Token, once: _Once) -> VolumePart:
        volume = volume or VolumePart(0, self._cursor.where(token), implicit=True)
        self._statement(volume, token, once)
        return volume

    def _statement(self, volume: VolumePart, token: Token, once: _Once) -> None:
        if token.text == "device":
            once.check(token, "device")
            volume.device = parse_device(self._cursor)
        elif token.text == "disk":
            once.check(token, "disk")
            volume.disk = parse_disk_path(self._cursor)
        else:
            once.check(token, "meta-disk")
            flexible = token.text == "flexible-meta-disk"
            volume.meta_disk = parse_meta_disk(self._cursor, flexible=flexible)
