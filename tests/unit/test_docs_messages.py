"""The operator guide quotes messages of the program: each has to be one that the program can print.

A table between `<!-- messages -->` and `<!-- end -->` has in its first column messages in backticks;
`…` stands for what differs from case to case. The other text of the guide is not looked at.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "guide.md"
PRODUCT = ("protocol", "replicator", "nbd_plugin")
PLACEHOLDER = "…"


def quoted_messages() -> list[str]:
    text = GUIDE.read_text(encoding="utf-8")
    tables = re.findall(r"<!-- messages -->\n(.*?)<!-- end -->", text, re.DOTALL)
    rows = [row for table in tables for row in table.splitlines()[2:]]
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row.split("|")[1])]


def texts_of_the_program() -> list[str]:
    """Every string of the product's code; what is filled in at run time appears as a placeholder."""
    texts = []
    for package in PRODUCT:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [
                        part.value if isinstance(part, ast.Constant) else PLACEHOLDER
                        for part in node.values
                    ]
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


TEXTS = texts_of_the_program()


def test_the_guide_quotes_messages() -> None:
    assert len(quoted_messages()) > 20, "the tables have moved: correct quoted_messages()"


@pytest.mark.parametrize("message", quoted_messages())
def test_a_message_in_the_guide_is_one_of_the_program(message: str) -> None:
    pieces = [piece.strip() for piece in message.split(PLACEHOLDER) if piece.strip()]
    found = [text for text in TEXTS if all(piece in text for piece in pieces)]
    # A message may be put together from several texts; then each piece must be one of them.
    alone = [piece for piece in pieces if not any(piece in text for text in TEXTS)]
    assert found or not alone, f"nothing in the code says: {alone}"
