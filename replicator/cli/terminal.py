"""What people see: messages, questions, a live bar. The only file that knows about terminals.

Rules: answers go to `out`, everything else to `err`. Nothing is coloured, and cursor control is
used only where the stream is a terminal. A question without a terminal counts as answered with no.
"""

from __future__ import annotations

from typing import TextIO

from replicator.cli.parser import PROGRAM
from replicator.errors import ReplicatorError, StateRefused

CLEAR_SCREEN = "\x1b[H\x1b[J"
UP_LINES = "\x1b[{count}F\x1b[J"


class Terminal:
    """out: the answer; err: everything else; keyboard: where answers to questions come from."""

    def __init__(self, out: TextIO, err: TextIO, keyboard: TextIO) -> None:
        self.out = out
        self.err = err
        self._keyboard = keyboard
        self._live_lines = 0

    @property
    def live(self) -> bool:
        """Whether a bar can be redrawn in place."""
        return self.err.isatty()

    def answer(self, text: str) -> None:
        """One line or several of the answer."""
        self.out.write(text if text.endswith("\n") or not text else text + "\n")

    def say(self, text: str) -> None:
        """A line about what is going on."""
        self.clear_live()
        self.err.write(text + "\n")
        self.err.flush()

    def error(self, error: ReplicatorError, resource: str = "") -> None:
        """The message, and the hint on its own line. resource: the one it happened to, if known."""
        message = refusal_text(error) if isinstance(error, StateRefused) else error.message
        if resource and resource not in message:
            message = f"{resource}: {message}"
        hint = f"\n  {error.hint}" if error.hint else ""
        self.say(f"{PROGRAM}: {message}{hint}")

    def ask(self, question: str) -> bool:
        """True only if a person at a terminal types the word yes."""
        self.say(f"{question}\n[need to type 'yes' to confirm]")
        if not self._keyboard.isatty():
            self.say("standard input is no terminal: taken as no (--force answers yes)")
            return False
        return self._keyboard.readline().strip() == "yes"

    def page(self, text: str) -> None:
        """A whole screen of the answer, in place of the one before on a terminal."""
        self.out.write((CLEAR_SCREEN if self.out.isatty() else "") + text)
        self.out.flush()

    def redraw(self, lines: list[str]) -> None:
        """Lines that replace those of the last redraw. Only sensible while `live`."""
        self.clear_live()
        self.err.write("".join(line + "\n" for line in lines))
        self.err.flush()
        self._live_lines = len(lines)

    def keep_live(self) -> None:
        """What was drawn last stays on the screen."""
        self._live_lines = 0

    def clear_live(self) -> None:
        if self._live_lines:
            self.err.write(UP_LINES.format(count=self._live_lines))
            self._live_lines = 0


def refusal_text(error: StateRefused) -> str:
    """`State change failed: (-2) ...`, the form administrators and their scripts search for."""
    if "State change failed" in error.message:
        return error.message
    label, colon, reason = error.message.partition(": ")
    if colon and " " not in label:
        return f"{label}: State change failed: ({error.code}) {reason}"
    return f"State change failed: ({error.code}) {error.message}"
