"""How the rows of the option table are written down: one short builder per kind of option.

Rules: no options here, only the shapes they come in.
"""

from __future__ import annotations

from replicator.config.options import NO_UNIT, Effect, Kind, Option, Unit

SECONDS = Unit("s")
TENTHS = Unit("0.1 s")
BYTES = Unit("bytes", 1)
SECTORS = Unit("sectors", 512)
PAGES = Unit("4 KiB pages")
KIB_RATE = Unit("KiB/s", 1024)
CRAM_ALGORITHMS = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
DIGEST_ALGORITHMS = ("crc32c", *CRAM_ALGORITHMS, "xxh3-64", "xxh3-128")


def number(
    section: str,
    name: str,
    low: int,
    high: int,
    default: int,
    meaning: str,
    effect: Effect = Effect.YES,
    *,
    unit: Unit = NO_UNIT,
    syncer: str = "",
    aliases: tuple[str, ...] = (),
) -> Option:
    return Option(
        section,
        name,
        Kind.NUMBER,
        default,
        meaning,
        effect,
        minimum=low,
        maximum=high,
        unit=unit,
        syncer=syncer,
        aliases=aliases,
    )


def boolean(
    section: str,
    name: str,
    default: bool,
    meaning: str,
    effect: Effect = Effect.YES,
    *,
    negatable: bool = False,
    syncer: str = "",
) -> Option:
    return Option(
        section, name, Kind.BOOLEAN, default, meaning, effect, negatable=negatable, syncer=syncer
    )


def choice(
    section: str,
    name: str,
    choices: str,
    default: str,
    meaning: str,
    effect: Effect = Effect.YES,
    *,
    prefixes: tuple[str, ...] = (),
    any_case: bool = False,
    syncer: str = "",
) -> Option:
    return Option(
        section,
        name,
        Kind.CHOICE,
        default,
        meaning,
        effect,
        choices=tuple(choices.split()),
        choice_prefixes=prefixes,
        any_case=any_case,
        syncer=syncer,
    )


def digest(
    section: str, name: str, meaning: str, *, syncer: str = "", effect: Effect = Effect.YES
) -> Option:
    return Option(
        section,
        name,
        Kind.CHOICE,
        "",
        meaning,
        choices=DIGEST_ALGORITHMS,
        syncer=syncer,
        effect=effect,
    )
