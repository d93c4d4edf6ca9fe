"""The two kinds of event loop that sockets are served by: uvloop as it is, which TLS connections use,
and a TurnLoop with its inner loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from replicator.runtime.turns import TurnLoop

RunLoop = Callable[[Coroutine[Any, Any, None]], None]


def on_uvloop(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def on_turns(main: Coroutine[Any, Any, None]) -> None:
    TurnLoop().run_turns(main)


LOOPS: list[RunLoop] = [on_uvloop, on_turns]
