"""Entry of the `replicator` command: parse, run one handler, turn every end into an exit code.

Rules: no traceback ever reaches an administrator unless --debug asks for it; interruption ends with
130, a reader that went away with 141 (as if by its signal), both silently.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import replicator
from replicator import compiled
from replicator.cli.parser import PROGRAM, Invocation, parse
from replicator.cli.terminal import Terminal
from replicator.errors import ReplicatorError

if TYPE_CHECKING:
    from replicator.cli.context import Context

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_INTERNAL = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit code and never raises."""
    words = list(sys.argv[1:] if argv is None else argv)
    terminal = Terminal(sys.stdout, sys.stderr, sys.stdin)
    try:
        code = _run(words, terminal)
        sys.stdout.flush()
    except ReplicatorError as error:
        terminal.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        terminal.keep_live()
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return EXIT_BROKEN_PIPE
    except Exception as error:
        return _unexpected(terminal, error, "--debug" in words)
    return code


def _run(words: list[str], terminal: Terminal) -> int:
    invocation = parse(words)
    if invocation.version:
        terminal.answer(f"{PROGRAM} {replicator.__version__}")
        terminal.answer(f"engine: {compiled.find()}")
        return 0
    if invocation.help:
        terminal.answer(invocation.help)
        return 0
    return _handler(invocation)(_context(invocation, terminal))


def _handler(invocation: Invocation) -> Callable[[Context], int]:
    assert invocation.command is not None, "parse() gives a command, a help text or the version"
    module, _, function = invocation.command.handler.partition(":")
    handler: Callable[[Context], int] = getattr(import_module(f"replicator.cli.{module}"), function)
    return handler


def _context(invocation: Invocation, terminal: Terminal) -> Context:
    from replicator.cli.context import Context
    from replicator.cli.world import World

    return Context(invocation, World(), terminal, os.environ)


def _unexpected(terminal: Terminal, error: Exception, debug: bool) -> int:
    """A fault of this program: one line, and where to go with it."""
    terminal.say(f"{PROGRAM}: internal error: {type(error).__name__}: {error}")
    terminal.say("  This should not happen, please report it with the output of --debug.")
    if debug:
        terminal.say(traceback.format_exc().rstrip())
    return EXIT_INTERNAL


def _drop_output() -> None:
    """So that the interpreter does not complain about the closed pipe when it flushes at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
