"""Parses what is inside `net { }`, `disk { }` and the other option sections, driven by the table.

Rules: one option statement at a time; which sections may stand where is `parser`'s business.
"""

from __future__ import annotations

from replicator.config.lexer import Cursor, Token, TokenKind
from replicator.config.option_table import spellings
from replicator.config.options import Effect, Kind, Option, read_value
from replicator.config.syntax import Sections, Setting, Settings
from replicator.errors import ConfigError


def parse_section(
    cursor: Cursor, section: str, title: str, sections: Sections, warnings: list[str]
) -> None:
    """Read `{ option...; }` into `sections`. `title` says for messages where the section stands.

    Section "syncer" puts each option where it belongs since 8.4.
    Raises ConfigSyntaxError, and ConfigError for a value that its option does not allow.
    """
    known = spellings(section)
    cursor.expect("{")
    while not cursor.take_if("}"):
        token = cursor.token
        if token.kind is not TokenKind.WORD or token.text not in known:
            what = f"an option of section {section} ({title}) or '}}'"
            raise cursor.source.expected(token, what, words=known)
        cursor.take()
        option, negated = known[token.text]
        setting = parse_setting(cursor, token, option, negated)
        _store(sections.setdefault(option.section, {}), setting)
        if option.effect is Effect.NO:
            warnings.append(
                f"{setting.where}: option {option.name} ({title}) has no effect in replicator"
            )


def parse_setting(cursor: Cursor, name: Token, option: Option, negated: bool = False) -> Setting:
    """The rest of a statement whose first word has been read, up to and with its ';'."""
    where = cursor.where(name)
    token = cursor.token
    if negated or option.kind is Kind.FLAG:
        cursor.expect(";")
        return Setting(option, not negated, "no" if negated else "yes", where)
    if option.kind is Kind.BOOLEAN and cursor.take_if(";"):
        return Setting(option, True, "yes", where)
    text = _value_text(cursor, option)
    try:
        value = read_value(option, text)
    except ConfigError as error:
        shown = cursor.source.error(token, error.message, hint=error.hint)
        raise ConfigError(shown.message, hint=shown.hint) from None
    cursor.expect(";")
    return Setting(option, value, str(value) if option.kind is Kind.CHOICE else text, where)


def _value_text(cursor: Cursor, option: Option) -> str:
    if option.kind is Kind.NAMES:
        names = [cursor.value("a host name").text]
        while cursor.token.is_value:
            names.append(cursor.take().text)
        return " ".join(names)
    if option.kind is Kind.ENDPOINT and not cursor.token.is_char(";"):
        return cursor.joined_text()
    if option.kind is Kind.BOOLEAN:
        return cursor.value("yes, no or ';'").text
    unit = f" in units of {option.unit.name}" if option.unit.name else ""
    return cursor.value(f"a value for {option.name} ({option.range_text}{unit})").text


def _store(settings: Settings, setting: Setting) -> None:
    settings.pop(setting.option.name, None)
    settings[setting.option.name] = setting
