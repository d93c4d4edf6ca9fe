"""A drive that turns read-only under a node, as worn-out ones do: it is given up, the peer serves on, and
what was missed meanwhile, not more, is copied when the drive is back."""

from __future__ import annotations

import os
import re

import pytest

from tests.integration.pair import MIB, RESOURCE, Pair
from tests.integration.torture_disks import LockedDisk

SIZE = 16 * MIB
MISSED = MIB
EXTENT = 4 * MIB
"""What a Primary that gives its disk up is unsure of: extents of the activity log, two were written to."""

pytestmark = pytest.mark.needs("nbdkit", "losetup", "mount", "umount")


def copied_last(log: str) -> int:
    """Bytes of the last resync."""
    found = re.findall(r"resync done \([0-9.]+ s, (\d+) KiB", log)
    assert found, log
    return int(found[-1]) << 10


@pytest.mark.parametrize("victim", ["alice", "bob"])
def test_a_disk_that_turns_read_only_is_given_up_and_later_gets_what_it_missed(victim: str) -> None:
    with Pair(sizes=(SIZE,)) as pair:
        node = pair.alice if victim == "alice" else pair.bob
        disk = LockedDisk(node, SIZE)
        try:
            pair.start_synced()
            pair.alice.write(0, before := os.urandom(2 * MIB))
            disk.fail()
            pair.alice.write(4 * MIB, missed := os.urandom(MISSED))
            node.wait(dstate="Diskless/UpToDate")
            assert "not permitted: is the device read-only? (EPERM); detach" in node.log()
            assert pair.alice.read(0, 2 * MIB) == before
            assert pair.alice.read(4 * MIB, MISSED) == missed

            refused = node.cmd("attach", RESOURCE, check=False)
            assert refused.returncode != 0
            assert f"blockdev --getro {node.backing()}" in refused.stderr
            node.wait(dstate="Diskless/UpToDate")

            disk.repair()
            node.cmd("attach", RESOURCE)
            for one in pair.nodes:
                one.wait(cstate="Connected", dstate="UpToDate/UpToDate")
            assert MISSED <= copied_last(node.log()) <= MISSED + 2 * EXTENT
            pair.alice.secondary()
            assert pair.difference(size=SIZE - MIB) is None
        finally:
            disk.repair()
