"""What two running nodes leave on their disks, read by the real drbdmeta and by an independent checker.

For each point in the life of a pair, both nodes' metadata has to be well-formed, to say the same to
drbdmeta, to the checker and to `replicator`, and to mean what a DRBD user expects there. The
strongest check: where the two data areas differ, the bitmap that drbdmeta makes of what a crash has
left (apply-al) has that block marked on a node that could become the source of the resync.

Rules: drbdmeta works on copies, never on a disk in use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from replicator.metadata.layout import Geometry, Placement, geometry
from replicator.runtime import metadata_files
from tests.integration import drbdmeta_tool as tool
from tests.integration.pair import MIB, RESOURCE, Node, Pair
from tests.integration.processes import wait_until
from tests.integration.test_drbdmeta import statements
from tests.tools.check_metadata_v08 import check

pytestmark = [pytest.mark.needs("drbdmeta", "nbdkit"), pytest.mark.timeout(120)]

INTERNAL = Placement("internal")
SIZE = 64 * MIB
BIT = 4096
EXTENT = 4 * MIB
JUST_CREATED = "0000000000000004"
NONE = "0000000000000000"
SLOW = {"disk": "c-plan-ahead 0; resync-rate 4M;"}
FAST = {"disk": "c-plan-ahead 0; resync-rate 500M;"}


@dataclass
class Found:
    """One node's metadata. uuids: current, bitmap, history 0 and 1, each without the lowest bit, which
    says whether the node was Primary then and never takes part in a comparison; primary_bit: that
    of the current one; report: the checker's; marked: bits after drbdmeta's apply-al."""

    name: str
    uuids: list[str]
    primary_bit: bool
    flags: dict[str, bool]
    report: dict[str, Any]
    marked: set[int]

    @property
    def bits(self) -> set[int]:
        """Bits set in the bitmap as it lies there."""
        return unpack(self.report)


def unpack(report: dict[str, Any]) -> set[int]:
    ranges = report["bitmap"]["ranges"]
    return {bit for start, count in ranges for bit in range(start, start + count)}


class Reader:
    """Looks at both nodes of a pair; every look checks what must hold at any time."""

    def __init__(self, pair: Pair, directory: Path) -> None:
        self.pair = pair
        self.directory = directory
        self.place: Geometry = geometry(SIZE, INTERNAL)

    def look(self) -> tuple[Found, Found]:
        alice, bob = (self._look_at(node) for node in self.pair.nodes)
        return alice, bob

    def _look_at(self, node: Node) -> Found:
        image = tool.copy_sparse(node.backing(), self.directory / node.name)
        report = check(str(image))
        assert report["errors"] == [] == report["warnings"], f"{node.name}: {report}"
        gi = tool.succeed(image, INTERNAL, "get-gi").strip()
        assert gi == report["gi"], "drbdmeta and the checker read different identifiers"
        theirs = tool.succeed(image, INTERNAL, "dump-md")
        ours = metadata_files.dump_md(str(image), INTERNAL, force=True)
        assert behind_the_heading(ours) == behind_the_heading(theirs)
        self._tools_agree_on_apply_al(image)
        applied = check(str(image), require_clean=True)
        assert applied["errors"] == [], "clean after drbdmeta has applied the activity log"
        raw = [report["uuids"][key] for key in ("current", "bitmap", "history0", "history1")]
        uuids = [f"{int(one, 16) & ~1:016X}" for one in raw]
        primary_bit = bool(int(raw[0], 16) & 1)
        return Found(node.name, uuids, primary_bit, report["flags"], report, unpack(applied))

    def _tools_agree_on_apply_al(self, image: Path) -> None:
        """Afterwards the log of `image` has been applied, by drbdmeta."""
        ours = tool.copy_sparse(image, image.with_suffix(".ours"))
        metadata_files.apply_al(str(ours), INTERNAL)
        tool.succeed(image, INTERNAL, "apply-al")
        assert tool.areas(ours, self.place) == tool.areas(image, self.place)

    def differing_bits(self) -> set[int]:
        """Blocks of 4 KiB in which the two data areas differ."""
        length = self.place.max_data_sectors * 512
        one, two = (tool.read_at(node.backing(), 0, length) for node in self.pair.nodes)
        return {
            at // BIT for at in range(0, length, BIT) if one[at : at + BIT] != two[at : at + BIT]
        }


def behind_the_heading(dump: str) -> str:
    """The statements without the word by which each tool says that metadata is unclean."""
    found = statements(dump)
    return found[found.index("uuid {") :]


def own_get_gi(node: Node) -> str:
    return node.cmd("get-gi", RESOURCE).stdout.strip()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., tuple[Pair, Reader]]]:
    pairs: list[Pair] = []

    def start(**options: Any) -> tuple[Pair, Reader]:
        pairs.append(Pair(sizes=(SIZE,), **options))
        return pairs[-1], Reader(pairs[-1], tmp_path)

    yield start
    for pair in pairs:
        pair.close()


Make = Callable[..., tuple[Pair, Reader]]


def is_uptodate(found: Found) -> bool:
    return found.flags["consistent"] and found.flags["was_up_to_date"]


def test_after_create_md_both_are_just_created_and_clean(make: Make) -> None:
    pair, reader = make()
    for node in pair.nodes:
        node.create_md()
    for node, found in zip(pair.nodes, reader.look(), strict=True):
        assert found.uuids == [JUST_CREATED, NONE, NONE, NONE]
        assert found.report["just_created"] and found.report["clean"]
        assert found.flags == {**dict.fromkeys(found.flags, False), "al_clean": True}
        assert own_get_gi(node) == found.report["gi"]


def test_before_the_first_sync_everything_is_marked_on_both(make: Make) -> None:
    pair, reader = make()
    pair.start()
    for found in reader.look():
        assert found.uuids[0] == JUST_CREATED
        assert found.report["disk_state"] == "Inconsistent"
        assert len(found.bits) == reader.place.max_data_sectors // 8


def test_after_the_first_sync_both_have_one_generation_and_nothing_marked(make: Make) -> None:
    pair, reader = make(sections=FAST)
    pair.start_synced()
    alice, bob = reader.look()
    assert alice.uuids == bob.uuids
    assert alice.uuids[0] not in (JUST_CREATED, NONE) and alice.uuids[1] == NONE
    assert (alice.primary_bit, bob.primary_bit) == (True, False)
    assert is_uptodate(alice) and is_uptodate(bob)
    assert (alice.flags["primary_ind"], bob.flags["primary_ind"]) == (True, False)
    assert alice.flags["connected_ind"] and bob.flags["connected_ind"]
    assert alice.bits == bob.bits == alice.marked == bob.marked == set()
    assert alice.report["superblock"]["la_size_sect"] == reader.place.max_data_sectors
    assert own_get_gi(pair.alice) == alice.report["gi"], "also while the daemon has the disk"


def test_after_an_orderly_down_nothing_will_be_resynchronised(make: Make) -> None:
    pair, reader = make(sections=FAST)
    pair.start_synced()
    for extent in (0, 3, 7):
        pair.alice.write(extent * EXTENT + 4096, b"w" * 8192)
    pair.alice.secondary()
    for node in pair.nodes:
        node.down()
    alice, bob = reader.look()
    assert alice.uuids == bob.uuids and alice.uuids[1] == NONE
    for node, found in zip(pair.nodes, (alice, bob), strict=True):
        assert is_uptodate(found)
        assert not found.flags["primary_ind"] and not found.flags["crashed_primary"]
        assert not found.primary_bit
        assert found.marked == set(), "apply-al marks nothing on a disk that was demoted"
        assert own_get_gi(node) == found.report["gi"]
    assert reader.differing_bits() == set()


def test_a_killed_primary_has_every_block_that_its_peer_may_lack_in_its_log(make: Make) -> None:
    pair, reader = make(sections=FAST)
    pair.start_synced()
    pair.alice.write(5 * EXTENT, b"o" * MIB)
    places = [extent * EXTENT + 12288 for extent in (0, 1, 6, 9, 14)]
    write_what_the_peer_never_gets(pair, places)
    alice, bob = reader.look()
    different = reader.differing_bits()
    assert {place // BIT for place in places} <= different, "the test needs differing disks"
    assert different <= alice.marked
    written = {5, *(place // EXTENT for place in places)}
    assert set(alice.report["activity_log"]["active_extents"]) == written
    assert alice.report["needs_apply_al"] and alice.flags["primary_ind"] and alice.primary_bit
    assert is_uptodate(alice) and is_uptodate(bob)
    assert not bob.flags["primary_ind"]
    assert alice.uuids == bob.uuids, "nobody has written alone, as far as anybody was told"


def write_what_the_peer_never_gets(pair: Pair, places: list[int]) -> None:
    """Bob freezes, alice writes, both are killed: the writes were never acknowledged."""
    import nbd

    handle = nbd.NBD()
    handle.connect_uri(pair.alice.nbd_uri())
    pair.bob.freeze()
    data = bytearray(b"n" * 4096)
    for place in places:
        handle.aio_pwrite(nbd.Buffer.from_bytearray(data), place)

    def on_disk() -> bool:
        handle.poll(10)
        return all(tool.read_at(pair.alice.backing(), place, 4096) == data for place in places)

    assert wait_until(on_disk, 10), pair.alice.log()
    pair.alice.kill9()
    pair.bob.kill9()


def test_after_the_crash_of_a_lone_primary_its_writes_are_marked_and_the_generation_is_new(
    make: Make,
) -> None:
    pair, reader = make(sections=FAST)
    pair.start_synced()
    (before, _) = reader.look()
    pair.bob.down()
    pair.alice.wait(cstate="WFConnection")
    pair.alice.write(2 * EXTENT, b"l" * 65536)
    pair.alice.kill9()
    alice, bob = reader.look()
    assert alice.uuids[0] not in before.uuids
    assert alice.uuids[1] == before.uuids[0] == bob.uuids[0], "the bitmap counts from bob's data on"
    assert bob.uuids[1] == NONE
    assert reader.differing_bits() <= alice.marked
    assert alice.marked <= set(range(2 * 1024, 3 * 1024)), "no more than the extent written to"


def test_a_split_brain_leaves_two_generations_with_one_ancestor_and_both_accounts(
    make: Make,
) -> None:
    pair, reader = make(sections=FAST)
    pair.start_synced()
    (before, _) = reader.look()
    pair.alice.disconnect()
    pair.alice.write(EXTENT, b"a" * 16384)
    pair.bob.primary()
    pair.bob.write(9 * EXTENT, b"b" * 32768)
    pair.alice.connect()  # bob waits for her
    for node in pair.nodes:
        node.wait(cstate="StandAlone")
        assert "split" in node.status()["last_error"].lower(), node.status()["last_error"]
    alice, bob = reader.look()
    assert alice.uuids[0] != bob.uuids[0]
    assert before.uuids[0] not in (alice.uuids[0], bob.uuids[0])
    for found in (alice, bob):
        assert found.uuids[1] == before.uuids[0], "the last generation both had"
        assert is_uptodate(found), "no data is given up without being told"
    assert bits_of(EXTENT, 16384) <= alice.bits
    assert bits_of(9 * EXTENT, 32768) <= bob.bits
    assert reader.differing_bits() <= alice.bits | bob.bits
    for node in pair.nodes:
        node.cmd("secondary", RESOURCE)
        node.down()
    for earlier, later in zip((alice, bob), reader.look(), strict=True):
        assert later.uuids == earlier.uuids, "going down changes no generation"
        assert later.bits == earlier.bits


def bits_of(offset: int, length: int) -> set[int]:
    return set(range(offset // BIT, (offset + length) // BIT))


@pytest.mark.parametrize("victim", ["source", "target"])
def test_an_interrupted_first_sync_leaves_an_inconsistent_target_that_marks_the_rest(
    make: Make, victim: str
) -> None:
    pair, reader = make(sections=SLOW)
    write_directly(pair.alice, SIZE // 2)
    pair.start()
    pair.alice.primary(force=True)
    part_of_the_resync(pair.bob)
    (pair.alice if victim == "source" else pair.bob).kill9()
    rest = pair.bob if victim == "source" else pair.alice
    rest.wait(cstate=("WFConnection", "Unconnected", "BrokenPipe"))
    rest.kill9()
    alice, bob = reader.look()
    assert bob.report["disk_state"] == "Inconsistent" and is_uptodate(alice)
    different = reader.differing_bits()
    assert 0 < len(different) < SIZE // 2 // BIT, "some is copied, some is not"
    # The bitmap on disk may lag behind in saying that blocks are equal, never that they differ.
    assert different <= bob.bits | bob.marked
    assert different <= alice.bits | alice.marked
    assert alice.uuids[1] != NONE, "the source's bitmap has a base generation"


def test_an_interrupted_resync_of_changes_leaves_the_rest_marked_on_both(make: Make) -> None:
    pair, reader = make(sections=FAST)
    pair.start_synced()
    (before, _) = reader.look()
    pair.bob.down()
    for extent in range(12):
        pair.alice.write(extent * EXTENT, bytes([65 + extent]) * MIB, flush=False)
    text = pair.config_path.read_text()
    pair.config_path.write_text(text.replace("resync-rate 500M", "resync-rate 2M"))
    pair.bob.up()
    part_of_the_resync(pair.bob)
    pair.bob.kill9()
    pair.alice.wait(cstate="WFConnection")
    alice, bob = reader.look()
    different = reader.differing_bits()
    assert different and different <= alice.bits and different <= bob.bits
    assert bob.report["disk_state"] == "Inconsistent"
    assert len(different) < 12 * MIB // BIT, "part of it had been copied"
    assert alice.uuids[0] not in before.uuids and alice.uuids[1] != NONE
    pair.config_path.write_text(text)
    pair.bob.up()
    for node in pair.nodes:
        node.wait(cstate="Connected", dstate="UpToDate/UpToDate", timeout=60)
    alice, bob = reader.look()
    assert alice.uuids == bob.uuids and alice.uuids[1] == NONE
    assert alice.bits == bob.bits == set() == reader.differing_bits()


def write_directly(node: Node, length: int) -> None:
    """Data that is on the disk before it is mirrored: the copies differ until the first sync."""
    with node.backing().open("r+b") as file:
        for offset in range(0, length, MIB):
            file.write(offset.to_bytes(8, "big") * (MIB // 8))


def part_of_the_resync(target: Node) -> None:
    """Wait until the target has got something of it, but not all."""
    target.wait(cstate="SyncTarget")
    first = int(target.status()["volumes"][0]["oos"])
    end = time.monotonic() + 30
    while not 0 < int(target.status()["volumes"][0]["oos"]) < first:
        assert time.monotonic() < end, target.log()
