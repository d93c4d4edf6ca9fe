"""A Primary's writes leave marks in its activity log only, and a start looks there only if the superblock
says that this was a Primary. So no write goes anywhere before it says so."""

from __future__ import annotations

import pytest

from protocol.states import Role
from replicator.engine.settings import DiskSettings
from replicator.engine.status import snapshot
from replicator.metadata.layout import geometry
from tests.simulation.pair import FLEXIBLE, Node, Pair

BLOCKS = 16


def promoted_again(al_updates: bool, seed: int = 0) -> tuple[Pair, Node, list[str]]:
    """alice has been Primary, with hot extents, and is so again; her superblock takes half a second."""
    settings = DiskSettings(al_extents=67, c_max_rate=0, al_updates=al_updates)
    pair = Pair(seed, disk=settings, placement=FLEXIBLE)
    pair.up_synced()
    alice = pair.alice
    alice.write(0, b"0" * 4096 * BLOCKS)
    alice.secondary()
    pair.run(1)
    superblock = geometry(alice.metas[0].size, FLEXIBLE).sb_offset
    alice.meta_disks[0].slow = lambda kind, offset, _length: (
        0.5 if "write" in kind and offset == superblock else 0.0
    )
    ended: list[str] = []
    alice.r.primary(False, lambda error: ended.append("promoted" if error is None else "refused"))
    pair.run_until(lambda: alice.is_(role=Role.Primary))
    return pair, alice, ended


@pytest.mark.parametrize("al_updates", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_written_while_a_promotion_is_under_way_is_marked_after_an_outage(seed, al_updates):
    pair, alice, ended = promoted_again(al_updates, seed)
    for block in range(BLOCKS):
        alice.volume().write(block * 4096, b"w" * 4096, False, lambda _errno: None)
    pair.run(0.1)
    assert not ended
    for node in (alice, pair.bob):
        node.power_loss()
    pair.up()
    pair.settle()
    assert alice.data() == pair.bob.data()


def test_requests_wait_until_the_superblock_says_primary_and_status_tells_why():
    pair, alice, ended = promoted_again(True)
    volume = alice.volume()
    volume.write(0, b"w" * 4096, False, lambda errno: ended.append(f"write {errno}"))
    volume.flush(lambda errno: ended.append(f"flush {errno}"))
    volume.read(4096, 4096, lambda errno, data: ended.append(f"read {errno} {data[:1]!r}"))
    pair.run(0.1)
    assert not ended
    shown = snapshot(alice.r).volumes[0]
    assert shown.waiting_for == "3 requests wait for the metadata to say Primary"
    pair.run(2)
    assert sorted(ended) == ["flush 0", "promoted", "read 0 b'0'", "write 0"]
    assert volume.application.straight


def test_who_is_demoted_meanwhile_has_nothing_left_that_waits():
    pair, alice, ended = promoted_again(True)
    volume = alice.volume()
    volume.write(0, b"w" * 4096, False, lambda errno: ended.append(f"write {errno}"))
    alice.secondary()
    assert "write 0" in ended
    assert not volume.application.pending
    assert alice.data() == pair.bob.data()
