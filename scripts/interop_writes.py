"""What is written in a scenario: a list of operations that follows from a seed alone.

It is run on the host and, as a copy of this file, in a guest; both get the same list.
Rules: the standard library only, and nothing but what the seed says decides.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

SECTOR = 512
SIZES = (512, 4096, 4096, 4096, 8192, 12288, 65536, 131072, 1048576)
KINDS = ("write",) * 16 + ("flush", "flush", "zero", "discard")


def batch(seed: int, count: int, size: int) -> Iterator[tuple[str, int, bytes]]:
    """(kind, offset, data) of `count` operations inside the first `size` bytes of a device.

    kind: write, flush (no data), zero or discard (data: as many zero bytes as it covers).
    """
    source = random.Random(seed)
    for _ in range(count):
        kind = source.choice(KINDS)
        if kind == "flush":
            yield kind, 0, b""
            continue
        length = min(source.choice(SIZES), size)
        if kind != "write":
            length = max(length, 4096)
        grain = SECTOR if length < 4096 else 4096
        offset = source.randrange((size - length) // grain + 1) * grain
        yield kind, offset, source.randbytes(length) if kind == "write" else bytes(length)
