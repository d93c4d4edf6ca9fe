"""Direct I/O against a real file: alignment, sizes beyond the bounce memory, and refusals."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from replicator.errors import NoDiskError
from replicator.runtime import direct_io
from replicator.runtime.direct_io import BOUNCE, DirectFile

SIZE = 8 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture(params=[512, 4096])
def file(path: Path, request: pytest.FixtureRequest) -> Iterator[DirectFile]:
    """On a disk that wants 512 bytes, and one that wants 4096."""
    fd = os.open(path, os.O_RDWR)
    opened = DirectFile(fd, str(path))
    opened.alignment = max(opened.alignment, request.param)
    yield opened
    opened.close()
    os.close(fd)


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 512),
        (512, 512),
        (512, 4096),
        (4096, 4096),
        (4096 - 512, 1024),
        (BOUNCE - 4096, 8192),
        (0, BOUNCE),
        (4096, 3 * BOUNCE + 4096),
        (512, 2 * BOUNCE + 512),
        (SIZE - 512, 512),
    ],
)
def test_what_is_written_is_read_back_and_nothing_beside_it_changes(
    file: DirectFile, path: Path, offset: int, length: int
) -> None:
    data = random.Random(offset).randbytes(length)
    file.write(offset, memoryview(data))
    assert file.read(offset, length) == data
    expected = bytearray(SIZE)
    expected[offset : offset + length] = data
    assert path.read_bytes() == expected


def test_aligned_and_unaligned_requests_see_each_others_data(file: DirectFile, path: Path) -> None:
    """A model of the disk beside thousands of random requests, one after the other."""
    rng = random.Random(1)
    model = bytearray(1 << 20)
    for _ in range(1500):
        sectors = rng.choice((1, 2, 7, 8, 16, 64))
        offset = rng.randrange((len(model) >> 9) - sectors + 1) << 9
        if rng.random() < 0.3:
            offset &= ~4095
        end = offset + sectors * 512
        if rng.random() < 0.6:
            model[offset:end] = rng.randbytes(end - offset)
            file.write(offset, bytes(model[offset:end]))
        else:
            assert file.read(offset, end - offset) == model[offset:end]
    assert path.read_bytes()[: len(model)] == model


def test_threads_do_not_share_their_memory(file: DirectFile) -> None:
    def work(number: int) -> bool:
        block = bytes([number]) * 65536
        for _ in range(30):
            file.write(number * 65536, block)
            if file.read(number * 65536, 65536) != block:
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_a_read_beyond_the_end_is_an_error(file: DirectFile) -> None:
    with pytest.raises(OSError) as failed:
        file.read(SIZE - 4096, 8192)
    assert failed.value.errno == errno.EIO


def test_data_goes_past_the_page_cache(path: Path) -> None:
    """What direct I/O is for: after a write and a read the cache has none of it."""
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    file = DirectFile(fd, str(path))
    file.write(1 << 20, b"x" * 65536)
    file.read(1 << 20, 65536)
    with pytest.raises(BlockingIOError):
        os.preadv(fd, [bytearray(4096)], 1 << 20, os.RWF_NOWAIT)
    file.close()
    os.close(fd)


def test_a_disk_without_direct_io_is_refused_with_the_option_that_helps(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.open(path, os.O_RDWR)

    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    for call in ("open", "preadv"):
        monkeypatch.setattr(direct_io.os, call, refuse)
        with pytest.raises(NoDiskError) as refused:
            DirectFile(fd, "/dev/x")
        assert refused.value.message.startswith("/dev/x: disk-io direct")
        assert "disk-io buffered" in refused.value.hint
        monkeypatch.undo()
    os.close(fd)
