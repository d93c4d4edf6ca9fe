"""`replicator bench` on a real pair, while an application writes."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from replicator.errors import StateRefused
from replicator.runtime import control
from tests.integration.pair import MIB, RESOURCE, Pair

pytestmark = [pytest.mark.needs("nbdkit"), pytest.mark.timeout(120)]

KINDS = {"disk-read", "disk-flush", "link", "write-here", "write", "write-flush"}


@pytest.mark.parametrize("frontend", ["nbdkit", "native"])
def test_it_measures_everything_and_changes_nothing(frontend: str) -> None:
    with Pair(frontend=frontend) as pair:
        pair.start_synced()
        content = os.urandom(6 * MIB)
        pair.alice.write(0, content)
        stop = threading.Event()
        written: list[bytes] = []

        def application() -> None:
            """Writes within the blocks that are rewritten, all the time."""
            with pair.alice.nbd() as client:
                while not stop.is_set():
                    written.append(os.urandom(64 << 10))
                    client.pwrite(written[-1], MIB)

        writer = threading.Thread(target=application)
        writer.start()
        try:
            said = pair.alice.cmd("bench", "--write", "--json", "--seconds", "0.4", RESOURCE)
        finally:
            stop.set()
            writer.join()
        (volume,) = json.loads(said.stdout)["volumes"]
        assert volume["missing"] == {}
        assert set(volume["measured"]) == KINDS
        for kind, found in volume["measured"].items():
            assert 0 < found["min_us"] <= found["p50_us"] <= found["p99_us"] <= found["max_us"], (
                kind
            )
        assert len(written) > 1
        expected = bytearray(content)
        expected[MIB : MIB + len(written[-1])] = written[-1]
        assert pair.alice.read(0, len(expected)) == expected
        assert pair.difference(size=60 * MIB) is None

        other = json.loads(pair.bob.cmd("bench", "--json", "--seconds", "0.2", RESOURCE).stdout)
        assert set(other["volumes"][0]["measured"]) == {"disk-read", "disk-flush", "link"}


def test_a_demotion_interrupts_it_and_is_not_refused() -> None:
    with Pair(frontend="native") as pair, ThreadPoolExecutor(1) as pool:
        pair.start_synced()
        run_dir = str(pair.alice.run_dir)
        series = {"volume": 0, "kind": "write-flush", "count": 10_000, "seconds": 20.0}
        bench = pool.submit(control.call, run_dir, RESOURCE, "bench", series, 40.0)
        time.sleep(0.5)
        assert not bench.done(), "the series was too short to be interrupted"
        pair.alice.secondary()
        with pytest.raises(StateRefused, match="interrupted by: replicator secondary"):
            bench.result(10)
        assert pair.alice.words()["role"] == "Secondary/Secondary"
