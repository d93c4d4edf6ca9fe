"""Invented histories in which media change behind the engine's back: disks are replaced, rot, are put
back from a backup, and bits of their metadata flip while a node is down. Or they hang.

Of each of these somebody knows: the administrator who orders what the manual says, or the node itself,
which refuses to start. What nobody can know, such as a flipped bit of a bitmap, which has no checksum,
is left out; docs/testing.md lists it.
"""

from __future__ import annotations

from protocol.states import Disk, Role
from replicator.errors import MetadataError, ReplicatorError
from replicator.metadata.layout import Geometry, geometry, sb_offset
from replicator.metadata.superblock import Flags, Superblock
from tests.simulation.checkers import on_disk
from tests.simulation.disk_histories import DiskHistory
from tests.simulation.histories import Act
from tests.simulation.medium import PAGE, SECTOR, Medium
from tests.simulation.pair import Node, create_md

CHECKED_FIELDS = {
    "magic": 60,
    "al_offset": 68,
    "bm_offset": 76,
    "bytes_per_bit": 80,
    "al_stripes": 88,
}
"""Where in the superblock, in bytes, four bytes are whose every bit a start checks."""
ROT_SECONDS = 3.0
"""How long an administrator waits for an order that is to make a rotten copy anew."""


class MediaHistory(DiskHistory):
    """Acts for those who choose them; none is chosen here."""

    def __init__(self, seed: int, steps: int = 0, acts: list[Act] | None = None) -> None:
        super().__init__(seed, steps, acts)
        self.blank: set[str] = set()
        """Nodes with copies that have never been in sync since they were spoilt: nobody would declare
        those good."""
        self.restored: set[str] = set()
        """Nodes that were put back to a backup and have not been in sync since."""

    def _note_current(self) -> None:
        super()._note_current()
        if self._together():
            self.blank.clear()
            self.restored.clear()

    def _other(self, node: Node) -> Node:
        return self.pair.bob if node is self.pair.alice else self.pair.alice

    def _half_overwritten(self, node: Node) -> bool:
        """Whether a copy of this node, which had all data, is a resync's target meanwhile, by an
        invalidate perhaps. If its source goes now, no good copy is left, and the nodes are right to
        refuse."""
        states = [volume.state.disk for volume in node.r.volumes.values()]
        # A detached disk shows no state, but its superblock does.
        heads = [self._superblock(node, number) for number in range(self.volumes)]
        return Disk.Inconsistent in states or any(not h.flags & Flags.CONSISTENT for h in heads)

    def _superblock(self, node: Node, number: int) -> Superblock:
        meta = node.metas[number]
        return Superblock.decode(meta.read(sb_offset(meta.size, self.pair.placement), PAGE))

    def _layout(self, node: Node, number: int) -> Geometry:
        return geometry(node.metas[number].size, self.pair.placement)

    def _may_be_spoilt(self) -> Node | None:
        """A node that is down, whose copy nobody needs: the other one, which runs, has all data. One
        is stopped if both run and are in sync."""
        secondaries = [n for n in self.nodes if n.resource and n.r.role is Role.Secondary]
        if self._together() and secondaries and self.current == {"alice", "bob"}:
            self._stop(self.rng.choice(secondaries))
        down = [n for n in self.nodes if n.resource is None]
        if len(down) != 1:
            return None
        other = self._other(down[0])
        useless = other.name not in self.current or self._half_overwritten(other)
        return None if useless else down[0]

    def _stop(self, node: Node) -> None:
        """This node is stopped, and what is left goes on for a while."""
        self._end_of(node, Node.kill)
        primary = self._primary()
        if primary is not None:
            self._write(primary)
        self.pair.run(self.rng.choice((0.01, 1.0)))
        self._alone()

    def _spoilt(self, node: Node) -> None:
        self._note(f"  {node.name}")
        self.current.discard(node.name)
        self.blank.add(node.name)
        for account in self.accounts:
            account.floor[node.name].clear()

    def _spoil(self, medium: Medium) -> dict[int, bytes]:
        """Put garbage onto some pages. Returns what was there."""
        garbage = self.rng.randbytes(8) * 512
        pages = self.rng.sample(range(self.pair.alice.data_size() // PAGE), 40)
        before = {page: medium.current_page(page) for page in pages}
        for page in pages:
            medium.put(page * PAGE, garbage)
        return before

    def _hang_disk(self) -> None:
        """What is asked of a disk now is answered some time later, all at once."""
        chosen = self._some_disk()
        if chosen is None:
            return
        node, number = chosen
        clock = self.pair.clock
        end = clock.time + self.rng.choice((0.2, 2.0, 15.0))
        for disk in (node.disks[number], node.meta_disks[number]):
            if self.rng.random() < 0.7:
                disk.slow = lambda _kind, _offset, _length: max(0.0, end - clock.time)

    # --- copies that are lost -----------------------------------------------------------------

    def _replace_disk(self) -> None:
        """A node that is down gets new disks, full of something else."""
        node = self._may_be_spoilt()
        if node is None:
            return
        self._spoilt(node)
        for number in range(self.volumes):
            self._spoil(node.media[number])
            create_md(node.metas[number], self.pair.placement)

    def _rot_at_rest(self) -> None:
        """A disk of a node that is down has lost some blocks. Its administrator invalidates it, with
        the offline tool, before the node is started."""
        node = self._may_be_spoilt()
        if node is None:
            return
        self._spoilt(node)
        for number in range(self.volumes):
            head = self._superblock(node, number)
            head.flags &= ~(Flags.CONSISTENT | Flags.WAS_UP_TO_DATE)
            head.flags |= Flags.FULL_SYNC
            node.metas[number].put(self._layout(node, number).sb_offset, head.encode())
            self._spoil(node.media[number])

    def _rot(self) -> None:
        """A disk of a Secondary loses some blocks without a word. Its administrator finds out, and
        invalidates it: from the answer on, whatever happens next, the copy is made anew."""
        secondaries = [n for n in self.nodes if n.resource and n.r.role is Role.Secondary]
        if not self._together() or not secondaries or self.guard is None:
            return
        node, number = self.rng.choice(secondaries), self.rng.randrange(self.volumes)
        self._note(f"  {node.name}/{number}")
        medium, differences = node.media[number], self.guard.differences[number]
        promises = self.guard.promises[number]
        answers: list[ReplicatorError | None] = []

        def answered(error: ReplicatorError | None) -> None:
            answers.append(error)
            if error is None:
                differences.hidden = 0

        promises.spoilt = node.name
        before = self._spoil(medium)
        spoilt = {page: medium.current_page(page) for page in before}
        differences.hidden = sum(1 << page for page in before)
        node.r.invalidate(number, answered)
        end = self.pair.clock.time + ROT_SECONDS
        while not answers and self.pair.clock.time < end and self.pair.clock.step():
            pass
        if answers == [None]:
            self.blank.add(node.name)
            self.guard.look()
        else:
            _unspoil(medium, before, spoilt)
        differences.hidden, promises.spoilt = 0, ""

    # --- copies that are old ------------------------------------------------------------------

    def _restore_backup(self) -> None:
        """A node that is down is put back to an old copy of its disks, data and metadata, as machines
        are to a snapshot. Left out are copies of a generation that the other one shares, or whose
        marks still count from: from UUIDs nobody could tell that they are old."""
        node = self._may_be_spoilt()
        if node is None or self.guard is None:
            return
        media = node.media if node.metas is node.media else node.media + node.metas
        backup = [dict(medium.pages) for medium in media]
        eras = [set(lineage.eras[node.name]) for lineage in self.guard.lineages]
        self._try(node.up)
        self.pair.run(10.0)
        self._note_current()
        other = self._other(node)
        if not self._together() or self._may_be_spoilt() is not node:
            return
        if not all(self._is_ancestor(backup, node, other, n) for n in range(self.volumes)):
            return
        self._spoilt(node)
        self.restored.add(node.name)
        for medium, pages in zip(media, backup, strict=True):
            for page in medium.pages.keys() | pages.keys():
                medium.put(page * PAGE, pages.get(page, bytes(PAGE)))
        for number in range(self.volumes):
            self.guard.lineages[number].put_back(node.name, eras[number])
            self.guard.differences[number].put_back(node.name)

    def _is_ancestor(
        self, backup: list[dict[int, bytes]], node: Node, other: Node, number: int
    ) -> bool:
        """Whether this copy was good, and is one that the other node knows to be older."""
        at = self._layout(node, number).sb_offset
        index = number if node.metas is node.media else self.volumes + number
        old = Superblock.decode(backup[index][at // PAGE])
        new = self._superblock(other, number)
        known = old.current | 1 in (new.history0 | 1, new.history1 | 1)
        return known and bool(old.flags & Flags.CONSISTENT)

    def _make_anew(self) -> None:
        refused = self._stand_alone() and "unrelated data" in self.pair.alice.r.last_error
        old = [node for node in self.nodes if refused and node.name in self.restored]
        for node in old:
            self._note(f"  {node.name}'s backup is too old: made anew")
            node.kill()
            for account in self.accounts:
                account.given_up(node.name)  # also what it was used for since
            for meta in node.metas:
                create_md(meta, self.pair.placement)
            node.up()
        if not old:
            super()._make_anew()

    # --- metadata -----------------------------------------------------------------------------

    def _flip(self, medium: Medium, at: int) -> None:
        """Flip one bit of the four bytes there."""
        start = at // SECTOR * SECTOR
        data = bytearray(medium.read(start, SECTOR))
        data[at - start + self.rng.randrange(4)] ^= 1 << self.rng.randrange(8)
        medium.put(start, bytes(data))

    def _flip_bits(self) -> None:
        """Bits of the metadata flip while a node is down: where the format shows it the node refuses
        to start, or goes on without what it does not need."""
        down = [n for n in self.nodes if n.resource is None]
        if not down:
            return
        node, number = self.rng.choice(down), self.rng.randrange(self.volumes)
        meta, layout = node.metas[number], self._layout(node, number)
        kept = dict(meta.pages)
        head = self._superblock(node, number)
        where = self.rng.choice(("superblock", "superblock", "old transaction", "activity log"))
        self._note(f"  {node.name}/{number}: {where}")
        if where == "superblock":
            self._flip(meta, layout.sb_offset + self.rng.choice(list(CHECKED_FIELDS.values())))
            lost = True
        else:
            ring = [layout.al_offset + PAGE * block for block in range(layout.al_blocks)]
            left = self._flip_in_log(meta, ring, everywhere=where == "activity log")
            lost = not left and bool(head.flags & Flags.PRIMARY_IND) and not head.clean
        if lost:
            self._refused(node, meta, kept)
        else:
            node.up()

    def _flip_in_log(self, meta: Medium, ring: list[int], *, everywhere: bool) -> bool:
        """Flip a bit in each block of the activity log, or in one that is not the newest transaction,
        which has all slots. Returns whether a transaction is left."""
        numbers = {at: t[0] for at in ring if (t := on_disk.transaction(meta.read(at, PAGE)))}
        newest = max(numbers, key=lambda at: numbers[at], default=None)
        everywhere = everywhere or newest is None
        for at in ring if everywhere else [self.rng.choice([at for at in ring if at != newest])]:
            self._flip(meta, at + 4 * self.rng.randrange(PAGE // 4))
        return not everywhere

    def _refused(self, node: Node, meta: Medium, kept: dict[int, bytes]) -> None:
        """The node must not start. Then its metadata is put back, as from a dump."""
        try:
            node.up()
        except MetadataError as error:
            if not error.hint:
                self.complaints.append(f"{node.name}: refused without advice: {error.message}")
        else:
            self.complaints.append(f"{node.name} has started with damaged metadata")
        node.kill()
        for page in kept.keys() | meta.pages.keys():
            if meta.pages.get(page) != kept.get(page):
                meta.put(page * PAGE, kept.get(page, bytes(PAGE)))


def _unspoil(medium: Medium, before: dict[int, bytes], spoilt: dict[int, bytes]) -> None:
    """Undo what _spoil has done, where nothing has been written since."""
    for page, garbage in spoilt.items():
        now = medium.current_page(page)
        for at in range(0, PAGE, SECTOR):
            if now[at : at + SECTOR] == garbage[at : at + SECTOR]:
                medium.put(page * PAGE + at, before[page][at : at + SECTOR])
