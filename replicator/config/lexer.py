"""drbd.conf text to tokens, and the messages that point at a place in that text.

Rules: knows characters, not keywords. Every token remembers its place; every error made here shows
file, line, column, the line itself and a caret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from replicator.config.model import Where
from replicator.config.words import nearest, printable
from replicator.errors import ConfigSyntaxError

MAX_WORD = 128
MAX_STRING = 4096


class TokenKind(Enum):
    WORD = "word"
    """Letters, digits and . _ - / without quotes."""
    STRING = "quoted string"
    CHAR = "character"
    """Any other single character, punctuation included."""
    END = "end of file"


@dataclass(frozen=True, slots=True)
class Token:
    kind: TokenKind
    text: str
    """Without quotes and escapes."""
    line: int
    column: int
    joined: bool = False
    """No white space between this and the previous token."""

    def is_char(self, text: str) -> bool:
        return self.kind is TokenKind.CHAR and self.text == text

    def is_word(self, text: str) -> bool:
        return self.kind is TokenKind.WORD and self.text == text

    @property
    def is_value(self) -> bool:
        return self.kind in (TokenKind.WORD, TokenKind.STRING)

    @property
    def described(self) -> str:
        if self.kind is TokenKind.END:
            return "end of file"
        return f"'{printable(self.text)}'"


@dataclass(frozen=True, slots=True)
class Source:
    """One configuration file: its name and its whole text."""

    file: str
    text: str

    def where(self, token: Token) -> Where:
        return Where(self.file, token.line, token.column)

    def error(self, token: Token, problem: str, *, hint: str = "") -> ConfigSyntaxError:
        """FILE:LINE:COLUMN: problem, the line, a caret under the offending text."""
        message = f"{self.file}:{token.line}:{token.column}: {problem}"
        lines = self.text.split("\n")
        if token.line <= len(lines) and token.kind is not TokenKind.END:
            message += _excerpt(lines[token.line - 1], token.column)
        return ConfigSyntaxError(message, hint=hint)

    def expected(
        self, token: Token, expected: str, *, words: Iterable[str] = (), hint: str = ""
    ) -> ConfigSyntaxError:
        """As error(): "expected ..., found ...", suggesting the nearest of `words`."""
        near = nearest(token.text, words)
        if near and token.kind is not TokenKind.END:
            hint = f"did you mean '{near}'?"
        return self.error(token, f"expected {expected}, found {token.described}", hint=hint)


_MAX_EXCERPT = 100


def _excerpt(line: str, column: int) -> str:
    start = max(0, column - 1 - _MAX_EXCERPT // 2)
    shown = "".join(one if one.isprintable() else " " for one in line[start:])[:_MAX_EXCERPT]
    lead = "..." if start else ""
    return f"\n    {lead}{shown.rstrip()}\n    {' ' * (len(lead) + column - 1 - start)}^"


_PATTERN = re.compile(
    r"""(?P<space>[ \t\r\f\v]+|\#[^\n]*)
      | (?P<newline>\n)
      | (?P<string>"(?:[^"\\\n]|\\[^\n])*")
      | (?P<word>[A-Za-z0-9._/-]+)
      | (?P<char>.)""",
    re.VERBOSE,
)


def tokenize(source: Source) -> list[Token]:
    """All tokens, an END token last. Raises ConfigSyntaxError for a string without end."""
    tokens: list[Token] = []
    line, line_start, previous_end = 1, 0, -1
    for match in _PATTERN.finditer(source.text):
        kind, start = match.lastgroup, match.start()
        if kind == "newline":
            line, line_start = line + 1, match.end()
            continue
        if kind == "space":
            continue
        joined, previous_end = start == previous_end, match.end()
        token = _token(kind or "", match.group(), line, start - line_start + 1, joined)
        _check(source, token)
        tokens.append(token)
    tokens.append(Token(TokenKind.END, "", line, len(source.text) - line_start + 1))
    return tokens


def _token(kind: str, text: str, line: int, column: int, joined: bool) -> Token:
    if kind == "string":
        plain = re.sub(r"\\(.)", r"\1", text[1:-1])
        return Token(TokenKind.STRING, plain, line, column, joined)
    token_kind = TokenKind.WORD if kind == "word" else TokenKind.CHAR
    return Token(token_kind, text, line, column, joined)


def _check(source: Source, token: Token) -> None:
    if token.is_char('"'):
        raise source.error(token, "this quoted string does not end on its line")
    limit = MAX_STRING if token.kind is TokenKind.STRING else MAX_WORD
    if len(token.text) > limit:
        raise source.error(
            token, f"expected at most {limit} characters, found {len(token.text)} in one piece"
        )


class Cursor:
    """A reading position in the tokens of one source."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._tokens = tokenize(source)
        self._at = 0

    @property
    def token(self) -> Token:
        return self._tokens[self._at]

    def take(self) -> Token:
        token = self.token
        if token.kind is not TokenKind.END:
            self._at += 1
        return token

    def take_if(self, char: str) -> bool:
        if self.token.is_char(char):
            self._at += 1
            return True
        return False

    def expect(self, char: str) -> Token:
        """Raises ConfigSyntaxError unless the next token is this punctuation."""
        if self.token.is_char(char):
            return self.take()
        hint = ""
        previous = self._tokens[self._at - 1]
        if char == ";" and self._at and previous.line < self.token.line:
            # The mistake is on the line above, and so must the caret be.
            after = replace(previous, column=previous.column + len(previous.text))
            problem = f"expected ';' after {previous.described}"
            raise self.source.error(after, problem)
        if self.token.joined and self.token.kind is TokenKind.CHAR:
            hint = "put a value with special characters in double quotes"
        elif self.token.kind is TokenKind.END:
            hint = "a closing '}' is missing somewhere above"
        raise self.source.expected(self.token, f"'{char}'", hint=hint)

    def value(self, expected: str) -> Token:
        """The next token, which must be a word or a quoted string."""
        if not self.token.is_value:
            raise self.source.expected(self.token, expected)
        return self.take()

    def integer(self, expected: str, low: int, high: int) -> int:
        """The next token as an unquoted decimal number within the bounds."""
        token = self.token
        digits = token.kind is TokenKind.WORD and token.text.isdigit() and len(token.text) < 20
        if not digits or not low <= int(token.text) <= high:
            raise self.source.expected(token, f"{expected} from {low} to {high}")
        return int(self.take().text)

    def joined_text(self) -> str:
        """Everything up to ';' or white space as one piece of text (addresses, patterns)."""
        first = self.token
        if first.kind is TokenKind.STRING:
            return self.take().text
        text = ""
        while not (self.token.is_char(";") or self.token.is_char("{") or self.token.is_char("}")):
            if text and not self.token.joined or self.token.kind is TokenKind.END:
                break
            text += self.take().text
        return text

    def where(self, token: Token) -> Where:
        return self.source.where(token)
