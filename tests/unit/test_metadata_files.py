"""The metadata commands on files: questions, refusals, locks, and what crashes may leave."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from replicator.errors import (
    DataFoundError,
    DeclinedError,
    DeviceError,
    MetadataError,
    NoDiskError,
    NoMetadataError,
)
from replicator.metadata.activity_log import encode_transaction, initialized_block
from replicator.metadata.layout import BLOCK, Geometry, Placement
from replicator.metadata.superblock import Flags, Superblock
from replicator.runtime import metadata_backing
from replicator.runtime import metadata_files as files
from replicator.runtime.metadata_backing import Backing, claim_slot, open_backing

INTERNAL, FLEXIBLE = Placement("internal"), Placement("flexible")
MIB = 1 << 20
SIZE = 64 * MIB


class Asked:
    """Answers questions and remembers them."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.questions: list[str] = []

    def __call__(self, question: str) -> bool:
        self.questions.append(question)
        return self.answers.pop(0)


NOBODY = Asked()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return sparse(tmp_path / "image", SIZE)


def sparse(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


def content(path: Path) -> bytes:
    return path.read_bytes()


def put(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def ext4(path: Path, size: int) -> None:
    """The marks of an ext4 file system of `size` bytes."""
    put(path, 0x404, (size // 4096).to_bytes(4, "little"))
    put(path, 0x418, b"\x02\0\0\0")
    put(path, 0x438, b"\x53\xef")
    put(path, 0x460, b"\x40\0\0\0")


def make(path: Path, placement: Placement = INTERNAL) -> Geometry:
    return files.create_md(str(path), placement, None, ask=NOBODY)


# Questions and refusals of create-md


def test_an_empty_disk_needs_no_question(image: Path) -> None:
    said: list[str] = []
    files.create_md(str(image), INTERNAL, ask=NOBODY, say=said.append)
    assert said == [f"{image}: new internal metadata written at byte 67104768"]
    assert files.get_gi(str(image), INTERNAL) == "0000000000000004:" + ":".join(
        ["0" * 16] * 3 + ["0"] * 7
    )


def test_existing_metadata_is_overwritten_only_after_a_yes(image: Path) -> None:
    place = make(image)
    put(image, place.bm_offset, b"\xff")
    before = content(image)
    asked = Asked(False)
    with pytest.raises(DeclinedError) as refusal:
        files.create_md(str(image), INTERNAL, ask=asked)
    assert refusal.value.exit_code == 1
    assert content(image) == before, "nothing may be written after a no"
    assert "valid v08 internal metadata" in asked.questions[0]
    files.create_md(str(image), INTERNAL, ask=Asked(True))
    assert content(image)[place.bm_offset] == 0


def test_force_answers_questions_and_says_so(image: Path) -> None:
    make(image)
    said: list[str] = []
    files.create_md(str(image), INTERNAL, force=True, ask=NOBODY, say=said.append)
    assert "(taken as yes: forced)" in said[0]


@pytest.mark.parametrize(
    ("at", "magic", "name"), [(28, "8374026a", "v07"), (60, "8374026d", "v09")]
)
def test_metadata_of_another_version_is_asked_about(
    image: Path, at: int, magic: str, name: str
) -> None:
    put(image, 67104768 + at, bytes.fromhex(magic))
    asked = Asked(False)
    with pytest.raises(DeclinedError):
        files.create_md(str(image), INTERNAL, ask=asked)
    assert f"found {name} metadata" in asked.questions[0]


def test_damaged_metadata_is_asked_about(image: Path) -> None:
    place = make(image)
    put(image, place.sb_offset + 64, b"\xff\xff\xff\xff")
    asked = Asked(True)
    files.create_md(str(image), INTERNAL, ask=asked)
    assert "damaged v08 metadata" in asked.questions[0]


def test_unknown_data_is_asked_about(image: Path) -> None:
    put(image, 60000, b"something")
    asked = Asked(False)
    with pytest.raises(DeclinedError):
        files.create_md(str(image), INTERNAL, ask=asked)
    assert "found unknown data" in asked.questions[0]


def test_a_file_system_that_fits_is_asked_about(image: Path) -> None:
    ext4(image, 67067904)
    asked = Asked(True)
    files.create_md(str(image), INTERNAL, ask=asked)
    assert "found ext4 of 67067904 bytes; 67067904 bytes are usable" in asked.questions[0]


@pytest.mark.parametrize("ignore", [False, True])
def test_a_file_system_that_would_be_truncated_is_never_touched(image: Path, ignore: bool) -> None:
    ext4(image, 67067904 + 4096)
    before = content(image)
    with pytest.raises(DataFoundError, match="found ext4 of 67072000 bytes") as refusal:
        files.create_md(str(image), INTERNAL, force=True, ignore_sanity_checks=ignore, ask=NOBODY)
    assert refusal.value.exit_code == 40
    assert "external meta-disk" in refusal.value.hint
    assert content(image) == before


def test_a_larger_log_may_not_push_metadata_into_a_file_system(image: Path) -> None:
    make(image)
    ext4(image, 67067904)
    with pytest.raises(DataFoundError):
        files.create_md(str(image), INTERNAL, al_stripe_size_4k=16, ask=Asked(True))


def test_metadata_that_only_moves_back_needs_no_look_at_the_data(image: Path) -> None:
    make(image)
    ext4(image, 67067904)
    asked = Asked(True)
    files.create_md(str(image), INTERNAL, ask=asked)
    assert len(asked.questions) == 1


def test_swap_space_is_refused_unless_checks_are_ignored(image: Path) -> None:
    put(image, 4086, b"SWAPSPACE2")
    with pytest.raises(DataFoundError, match="found swap space"):
        files.create_md(str(image), INTERNAL, force=True, ask=NOBODY)
    files.create_md(str(image), INTERNAL, ignore_sanity_checks=True, ask=Asked(True))


def test_a_file_system_on_a_metadata_device_is_refused(image: Path, tmp_path: Path) -> None:
    data = sparse(tmp_path / "data", SIZE)
    ext4(image, MIB)
    with pytest.raises(DataFoundError, match="on a metadata device"):
        files.create_md(str(data), FLEXIBLE, str(image), force=True, ask=NOBODY)


def test_external_metadata_is_made_anew_after_one_question(image: Path, tmp_path: Path) -> None:
    data = sparse(tmp_path / "data", SIZE)
    files.create_md(str(data), FLEXIBLE, str(image), ask=NOBODY)
    asked = Asked(True)
    files.create_md(str(data), FLEXIBLE, str(image), ask=asked)
    assert len(asked.questions) == 1
    assert content(data) == bytes(SIZE), "the data disk is not written"


def test_slots_of_a_shared_device_do_not_disturb_each_other(tmp_path: Path) -> None:
    data = sparse(tmp_path / "data", SIZE)
    shared = sparse(tmp_path / "meta", 3 * 128 * MIB)
    for index in (0, 2, 1):
        files.create_md(str(data), Placement("indexed", index), str(shared), ask=NOBODY)
    with pytest.raises(MetadataError, match="index 3: expected at least 536870912 bytes"):
        files.create_md(str(data), Placement("indexed", 3), str(shared), ask=NOBODY)
    files.wipe_md(str(data), Placement("indexed", 1), str(shared), ask=Asked(True))
    assert files.dstate(str(data), Placement("indexed", 0), str(shared)) == "Inconsistent"
    with pytest.raises(NoMetadataError):
        files.dstate(str(data), Placement("indexed", 1), str(shared))
    assert files.dstate(str(data), Placement("indexed", 2), str(shared)) == "Inconsistent"


def test_a_data_disk_larger_than_the_bitmap_is_remarked_on(tmp_path: Path) -> None:
    data = sparse(tmp_path / "data", 1 << 40)
    meta = sparse(tmp_path / "meta", 128 * 1024)
    said: list[str] = []
    files.create_md(str(data), FLEXIBLE, str(meta), ask=NOBODY, say=said.append)
    assert "the rest will not be used" in said[0]


def test_disk_and_meta_disk_must_differ(image: Path) -> None:
    with pytest.raises(MetadataError, match="which is the disk too"):
        files.create_md(str(image), FLEXIBLE, str(image), ask=NOBODY)


def test_external_metadata_without_a_path_is_refused(image: Path) -> None:
    with pytest.raises(MetadataError, match="needs the path of a meta-disk"):
        files.create_md(str(image), FLEXIBLE, ask=NOBODY)


def test_a_peer_max_bio_size_beyond_a_mebibyte_is_refused(image: Path) -> None:
    with pytest.raises(MetadataError, match="peer-max-bio-size: expected 0 to 1048576"):
        files.create_md(str(image), INTERNAL, peer_max_bio_size=MIB + 1, ask=NOBODY)


def test_a_huge_sparse_file_is_done_in_no_time_and_stays_sparse(tmp_path: Path) -> None:
    image = sparse(tmp_path / "image", (16 << 40) - (1 << 30))
    place = make(image)
    started = time.monotonic()
    files.create_md(str(image), INTERNAL, ask=Asked(True))
    assert time.monotonic() - started < 2
    assert place.bm_bytes > 500 * MIB
    assert image.stat().st_blocks * 512 < MIB, "the bitmap must not be allocated"


# Who has the disk


def test_a_disk_in_use_is_refused_naming_who_has_it(image: Path) -> None:
    make(image)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from replicator.runtime.metadata_files import open_backing\n"
            f"b = open_backing({str(image)!r}); print('locked', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin and holder.stdout
    try:
        assert holder.stdout.readline() == b"locked\n"
        for command in changing_commands(image):
            with pytest.raises(DeviceError, match=rf"in use: pid {holder.pid} \(.*\) has it open"):
                command()
        assert files.dstate(str(image), INTERNAL) == "Inconsistent", "reading is always possible"
    finally:
        holder.communicate()
    files.create_md(str(image), INTERNAL, ask=Asked(True))


def changing_commands(image: Path) -> list[Callable[[], object]]:
    path = str(image)
    return [
        lambda: files.create_md(path, INTERNAL, force=True, ask=NOBODY),
        lambda: files.wipe_md(path, INTERNAL, force=True, ask=NOBODY),
        lambda: files.restore_md(
            path, INTERNAL, text=files.dump_md(path, INTERNAL), force=True, ask=NOBODY
        ),
        lambda: files.apply_al(path, INTERNAL),
        lambda: files.set_gi(path, INTERNAL, text="5", force=True, ask=NOBODY),
        lambda: files.outdate(path, INTERNAL),
        lambda: files.invalidate(path, INTERNAL),
    ]


def test_the_claim_outlives_the_object_but_not_the_descriptor(image: Path) -> None:
    fd = open_backing(str(image)).detach_fd()
    with pytest.raises(DeviceError):
        open_backing(str(image))
    os.close(fd)
    open_backing(str(image)).close()


def test_slots_are_claimed_one_by_one(tmp_path: Path) -> None:
    shared = str(sparse(tmp_path / "meta", 512 * MIB))
    with open_backing(shared, index=0) as first, open_backing(shared, index=1):
        with pytest.raises(DeviceError, match="in use"):
            open_backing(shared, index=1)
        with pytest.raises(DeviceError, match="in use"):
            open_backing(shared)
        claim_slot(first.fd, shared, 2)
        with pytest.raises(DeviceError, match="in use"):
            open_backing(shared, index=2)
    with open_backing(shared), pytest.raises(DeviceError, match="in use"):
        open_backing(shared, index=3)


def test_what_is_no_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoDiskError, match="cannot open .*missing: No such file"):
        open_backing(str(tmp_path / "missing"))
    with pytest.raises(NoDiskError, match="expected a block device or a regular file"):
        open_backing("/dev/zero")
    with pytest.raises(NoDiskError, match="cannot open|found a directory"):
        open_backing(str(tmp_path))


# Reading


@pytest.mark.parametrize("command", ["get_gi", "show_gi", "dstate", "dump_md"])
def test_reading_commands_end_with_1_where_there_is_nothing(image: Path, command: str) -> None:
    with pytest.raises(NoMetadataError, match="no valid v08 metadata") as refusal:
        getattr(files, command)(str(image), INTERNAL)
    assert refusal.value.exit_code == 1
    assert str(image) in refusal.value.message
    assert "create-md" in refusal.value.hint


def test_attach_gets_the_class_with_exit_code_10(image: Path) -> None:
    with pytest.raises(MetadataError) as refusal:
        files.read_metadata(str(image), INTERNAL)
    assert refusal.value.exit_code == 10


# Changing


def crash(image: Path) -> Geometry:
    """Leave the image as a Primary does that crashed with extent 3 active."""
    place = make(image)
    superblock = Superblock.fresh(place)
    superblock.clean = False
    superblock.flags = Flags.CONSISTENT | Flags.PRIMARY_IND | Flags.WAS_UP_TO_DATE
    superblock.la_size_sect = place.max_data_sectors
    put(image, place.al_offset, encode_transaction(0, [(0, 3)], [0xFFFFFFFF] * 67, 0))
    put(image, place.sb_offset, superblock.encode())
    return place


def test_apply_al_on_files_marks_and_cleans(image: Path) -> None:
    place = crash(image)
    said: list[str] = []
    files.apply_al(str(image), INTERNAL, say=said.append)
    bitmap = content(image)[place.bm_offset :][:4096]
    assert bitmap == bytes(384) + b"\xff" * 128 + bytes(4096 - 512)
    assert content(image)[place.al_offset :][: 8 * BLOCK] == initialized_block() * 8
    assert not files.read_metadata(str(image), INTERNAL).superblock.needs_apply_al
    assert said == [
        f"{image}: activity log applied: 4096 KB more marked as out of sync (1 extents of 4 MiB)"
    ]


def test_apply_al_writes_nothing_to_clean_metadata(image: Path) -> None:
    make(image)
    before = os.stat(image).st_mtime_ns
    files.apply_al(str(image), INTERNAL)
    assert os.stat(image).st_mtime_ns == before


class PowerFailure(BaseException):
    """Not an Exception: nothing may catch it and carry on."""


class Recorder(Backing):
    """A backing whose power fails after a number of writes; zeroing counts as one."""

    left = 0

    def _spend(self) -> None:
        if Recorder.left == 0:
            raise PowerFailure
        Recorder.left -= 1

    def write(self, offset: int, data: bytes | bytearray) -> None:
        self._spend()
        super().write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self._spend()
        super().zero(offset, length)


@pytest.fixture
def power(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    monkeypatch.setattr(metadata_backing, "Backing", Recorder)

    def fail_after(writes: int) -> None:
        Recorder.left = writes

    fail_after(10**9)
    return fail_after


@pytest.mark.parametrize("writes", range(4))
def test_a_crash_in_create_md_never_leaves_generations_over_an_emptied_bitmap(
    image: Path, power: Callable[[int], None], writes: int
) -> None:
    place = crash(image)
    files.apply_al(str(image), INTERNAL)
    power(writes)
    with pytest.raises(PowerFailure):
        files.create_md(str(image), INTERNAL, ask=Asked(True))
    dirty = any(content(image)[place.bm_offset :][:4096])
    try:
        files.read_metadata(str(image), INTERNAL)
    except MetadataError:
        return
    assert dirty, "valid metadata must still have the bits of the old volume"


@pytest.mark.parametrize("writes", range(3))
def test_apply_al_can_be_interrupted_and_run_again(
    image: Path, power: Callable[[int], None], writes: int
) -> None:
    place = crash(image)
    power(writes)
    with pytest.raises(PowerFailure):
        files.apply_al(str(image), INTERNAL)
    assert files.read_metadata(str(image), INTERNAL).superblock.needs_apply_al
    power(10**9)
    files.apply_al(str(image), INTERNAL)
    assert content(image)[place.bm_offset + 384 :][:128] == b"\xff" * 128


def test_set_gi_asks_and_tells_both_states(image: Path) -> None:
    make(image)
    said: list[str] = []
    change = "ABC::::1:1"
    assert not files.set_gi(str(image), INTERNAL, text=change, ask=Asked(False), say=said.append)
    assert files.get_gi(str(image), INTERNAL).startswith("0000000000000004:")
    assert [line.split()[0] for line in said] == ["previously", "set"]
    assert files.set_gi(str(image), INTERNAL, text=change, ask=Asked(True))
    assert files.dstate(str(image), INTERNAL) == "Consistent"


def test_restore_brings_back_what_was_dumped_onto_a_disk_of_another_size(
    image: Path, tmp_path: Path
) -> None:
    place = crash(image)
    files.apply_al(str(image), INTERNAL)
    text = files.dump_md(str(image), INTERNAL)
    larger = sparse(tmp_path / "larger", 3 * SIZE)
    said: list[str] = []
    new = files.restore_md(str(larger), INTERNAL, text=text, ask=NOBODY, say=said.append)
    assert said == [f"{larger}: metadata restored"]
    assert files.get_gi(str(larger), INTERNAL) == files.get_gi(str(image), INTERNAL)
    assert content(larger)[new.bm_offset :][:4096] == content(image)[place.bm_offset :][:4096]
    smaller = sparse(tmp_path / "smaller", SIZE // 2)
    files.restore_md(str(smaller), INTERNAL, text=text, ask=NOBODY, say=said.append)
    assert "la-size-sect: 130992 does not fit and was reduced to" in said[1]
    superblock, shrunk = files.read_metadata(str(smaller), INTERNAL)
    assert superblock.la_size_sect == shrunk.max_data_sectors


def test_a_dump_without_flags_is_restored_with_a_warning(image: Path, tmp_path: Path) -> None:
    make(image)
    text = files.dump_md(str(image), INTERNAL).replace("flags 0x00000080", "flags 0x00000000")
    said: list[str] = []
    target = sparse(tmp_path / "target", SIZE)
    files.restore_md(str(target), INTERNAL, text=text, ask=NOBODY, say=said.append)
    assert "carries no flags" in said[0]


def test_a_bad_dump_touches_nothing(image: Path) -> None:
    make(image)
    before = content(image)
    with pytest.raises(MetadataError, match="dump line 1"):
        files.restore_md(str(image), INTERNAL, text="nonsense", force=True, ask=NOBODY)
    assert content(image) == before


def test_restore_asks_like_create(image: Path) -> None:
    make(image)
    text = files.dump_md(str(image), INTERNAL)
    with pytest.raises(DeclinedError):
        files.restore_md(str(image), INTERNAL, text=text, ask=Asked(False))


def test_wipe_asks_and_then_removes_only_the_superblock(image: Path) -> None:
    place = crash(image)
    with pytest.raises(DeclinedError):
        files.wipe_md(str(image), INTERNAL, ask=Asked(False))
    before = content(image)
    assert files.wipe_md(str(image), INTERNAL, ask=Asked(True))
    assert content(image) == before[: place.sb_offset] + bytes(BLOCK)
