"""Histories with failing disks and orders at bad times: a fixed set, and those that found something."""

from __future__ import annotations

import pytest

from tests.simulation.disk_histories import DiskHistory

FOUND = (336, 620, 755, 1032, 1092, 2106, 2368, 5488, 7535, 7825, 10441)
"""Each of these once ended with copies that differed, or without what a flush had promised."""


@pytest.mark.parametrize("seed", [*range(25), *FOUND])
def test_no_failing_disk_and_no_order_loses_what_was_promised(seed):
    DiskHistory(seed).run()
