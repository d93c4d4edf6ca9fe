"""Questions, refusals and the live bar, on terminals and without one."""

from __future__ import annotations

import io

import pytest

from replicator.cli.terminal import Terminal
from replicator.errors import ReplicatorError, StateRefused


class Stream(io.StringIO):
    """A text stream that may be a terminal."""

    def __init__(self, text: str = "", terminal: bool = True) -> None:
        super().__init__(text)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def terminal(typed: str = "", *, keyboard: bool = True, screen: bool = True) -> Terminal:
    return Terminal(Stream(terminal=screen), Stream(terminal=screen), Stream(typed, keyboard))


def err(found: Terminal) -> str:
    assert isinstance(found.err, Stream)
    return found.err.getvalue()


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("yes\n", True),
        ("y\n", False),
        ("no\n", False),
        ("YES\n", False),
        ("", False),
        (" yes \n", True),
    ],
)
def test_only_the_word_yes_counts_as_yes(typed: str, answer: bool) -> None:
    found = terminal(typed)
    assert found.ask("Overwrite r0/0?") is answer
    assert err(found).startswith("Overwrite r0/0?\n")


def test_a_pipe_cannot_say_yes() -> None:
    found = terminal("yes\n", keyboard=False)
    assert found.ask("Overwrite?") is False
    assert "--force" in err(found)


def test_an_error_names_the_resource_once_and_ends_with_the_hint() -> None:
    found = terminal()
    found.error(ReplicatorError("no metadata", hint="Try: replicator create-md r0"), "r0")
    found.error(ReplicatorError("r0/0: no metadata"), "r0")
    assert err(found) == (
        "replicator: r0: no metadata\n  Try: replicator create-md r0\nreplicator: r0/0: no metadata\n"
    )


def test_a_refusal_has_the_form_that_administrators_know() -> None:
    found = terminal()
    found.error(StateRefused("Multiple primaries not allowed by config", code=-1), "r0")
    assert err(found) == (
        "replicator: r0: State change failed: (-1) Multiple primaries not allowed by config\n"
    )
    volume = terminal()
    volume.error(StateRefused("r0/1: Device is held open: /mnt", code=-12), "r0")
    assert err(volume) == (
        "replicator: r0/1: State change failed: (-12) Device is held open: /mnt\n"
    )
    again = terminal()
    again.error(StateRefused("r0: State change failed: (-1) x", code=-1), "r0")
    assert err(again).count("State change failed") == 1


def test_a_bar_is_redrawn_in_place_and_messages_replace_it() -> None:
    found = terminal()
    found.redraw(["one", "two"])
    found.redraw(["three"])
    found.say("a message")
    assert err(found) == "one\ntwo\n\x1b[2F\x1b[Jthree\n\x1b[1F\x1b[Ja message\n"


def test_pages_clear_the_screen_only_on_a_terminal() -> None:
    for screen, before in ((True, "\x1b[H\x1b[J"), (False, "")):
        found = terminal(screen=screen)
        found.page("text\n")
        assert isinstance(found.out, Stream)
        assert found.out.getvalue() == before + "text\n"
