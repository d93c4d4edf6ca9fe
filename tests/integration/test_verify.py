"""Online verify of two real daemons, as an administrator orders and watches it."""

from __future__ import annotations

import pytest

from tests.integration.pair import MIB, Node, Pair

BLOCK = 4096

pytestmark = pytest.mark.needs("nbdkit")


def damage(node: Node, blocks: list[int]) -> None:
    """Change blocks of the backing file behind the daemon's back."""
    with node.backing(0).open("r+b") as file:
        for block in blocks:
            file.seek(block * BLOCK)
            file.write(b"damaged!")


def oos(node: Node) -> int:
    return int(node.status()["volumes"][0]["oos"])


def test_verify_finds_what_differs_and_a_reconnection_repairs_it() -> None:
    with Pair(sizes=(16 * MIB,), sections={"net": "verify-alg xxh3-128;"}) as pair:
        pair.start_synced()
        pair.alice.write(0, b"what both have  " * (MIB // 16))
        damage(pair.bob, [3, 4, 2000])
        pair.bob.cmd("verify", "r0")
        pair.bob.wait(cstate="Connected", dstate="UpToDate/UpToDate")
        pair.alice.wait(cstate="Connected")
        assert (oos(pair.alice), oos(pair.bob)) == (12, 12)
        assert "out of sync: start=24, size=16 (sectors)" in pair.bob.log()
        pair.alice.disconnect()
        pair.alice.connect()
        for node in pair.nodes:
            node.wait(cstate="Connected", dstate="UpToDate/UpToDate")
        assert (oos(pair.alice), oos(pair.bob)) == (0, 0)
        assert pair.difference(size=15 * MIB) is None


def test_a_verify_that_is_refused_says_why_and_what_to_do() -> None:
    with Pair(sizes=(16 * MIB,)) as pair:
        pair.start_synced()
        refused = pair.alice.cmd("verify", "r0", check=False)
        assert refused.returncode == 11
        assert "(-14) Need a verify algorithm to start online verify" in refused.stderr
        assert "set verify-alg in the net section of both nodes" in refused.stderr
        outside = pair.alice.cmd("verify", "--start", "1T", "r0", check=False)
        assert outside.returncode != 0 and "Traceback" not in outside.stderr
