"""/proc/drbd text against recordings of a real pair of 8.4.11 nodes, and the formulas for any input."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.engine.snapshot import Progress, ResourceSnapshot, VolumeSnapshot
from replicator.status import proc_text
from replicator.status.progress import (
    amounts_text,
    bar,
    done_percent,
    duration_text,
    per_mille,
    percent_text,
    progress_lines,
    speeds,
)

STATE_LINE = re.compile(
    r"^ *(?P<minor>\d+): cs:(?P<cs>\w+) ro:(?P<role>\w+)/(?P<peer_role>\w+)"
    r" ds:(?P<disk>\w+)/(?P<peer_disk>\w+) (?P<protocol>[ABC ]) (?P<flags>\S{6})$"
)


def run(
    total: int, left: int, mark_age: float, mark_left: int, elapsed: float, want: int | None = None
) -> Progress:
    return Progress(False, total, left, elapsed, mark_age, mark_left, want)


RECORDED: list[tuple[str, str, list[Progress]]] = [
    ("nothing configured", "", []),
    ("unconfigured minor", " 0: cs:Unconfigured\n", []),
    (
        "waiting, activity log suspended",
        """\
 0: cs:WFConnection ro:Secondary/Unknown ds:Inconsistent/DUnknown C r----s
    ns:0 nr:0 dw:0 dr:0 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:102360
""",
        [],
    ),
    (
        "stand alone: two blanks for the protocol",
        """\
 0: cs:StandAlone ro:Secondary/Unknown ds:Inconsistent/DUnknown   r----s
    ns:0 nr:0 dw:0 dr:0 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:102360
""",
        [],
    ),
    (
        "initial sync, just begun",
        """\
 0: cs:SyncSource ro:Primary/Secondary ds:UpToDate/Inconsistent C r-----
    ns:2460 nr:0 dw:0 dr:2460 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:99900
	[>....................] sync'ed:  4.0% (99900/102360)K
	finish: 0:00:35 speed: 2,460 (2,460) K/sec
 1: cs:SyncTarget ro:Secondary/Primary ds:Inconsistent/UpToDate C r-----
    ns:0 nr:2460 dw:2460 dr:0 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:99900
	[>....................] sync'ed:  4.0% (99900/102360)K
	finish: 0:00:35 speed: 2,460 (2,460) want: 8,192 K/sec
""",
        [run(25590, 24975, 1, 25590, 1), run(25590, 24975, 1, 25590, 1, 8192)],
    ),
    (
        "initial sync, two seconds later",
        """\
 0: cs:SyncSource ro:Primary/Secondary ds:UpToDate/Inconsistent C r-----
    ns:20480 nr:0 dw:0 dr:20480 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:81880
	[===>................] sync'ed: 24.0% (81880/102360)K
	finish: 0:00:07 speed: 10,240 (10,240) K/sec
""",
        [run(25590, 20470, 2, 25590, 2)],
    ),
    (
        "paused by both",
        """\
 0: cs:PausedSyncS ro:Primary/Secondary ds:UpToDate/Inconsistent C r-pu--
    ns:68816 nr:0 dw:0 dr:68816 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:33544
 1: cs:PausedSyncT ro:Secondary/Primary ds:Inconsistent/UpToDate C r-pu--
    ns:0 nr:68816 dw:68816 dr:0 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:33544
""",
        [run(25590, 8386, 3, 9206, 8), run(25590, 8386, 3, 9206, 8, 8192)],
    ),
    (
        "resumed: recent speed differs from average",
        """\
 0: cs:SyncSource ro:Primary/Secondary ds:UpToDate/Inconsistent C r-----
    ns:78644 nr:0 dw:0 dr:78644 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:23716
	[===============>....] sync'ed: 80.0% (23716/102360)K
	finish: 0:00:04 speed: 4,912 (7,864) K/sec
 1: cs:SyncTarget ro:Secondary/Primary ds:Inconsistent/UpToDate C r-----
    ns:0 nr:78644 dw:78644 dr:0 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:23716
	[===============>....] sync'ed: 80.0% (23716/102360)K
	finish: 0:00:04 speed: 4,912 (8,736) want: 8,192 K/sec
""",
        [run(25590, 5929, 2.4, 8386, 10.9), run(25590, 5929, 2, 8386, 9, 8192)],
    ),
    (
        "in sync",
        """\
 0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----
    ns:102360 nr:0 dw:0 dr:102360 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:0
 1: cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate C r-----
    ns:0 nr:102360 dw:102360 dr:0 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:0
""",
        [],
    ),
    (
        "online verify",
        """\
 0: cs:VerifyS ro:Primary/Secondary ds:UpToDate/UpToDate C r-----
    ns:102360 nr:0 dw:0 dr:138264 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:0
	[======>.............] verified: 36.0% (66456/102360)K
	finish: 0:00:07 speed: 8,976 (8,976) want: 8,192 K/sec
 1: cs:VerifyT ro:Secondary/Primary ds:UpToDate/UpToDate C r-----
    ns:0 nr:102360 dw:102360 dr:35904 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:0
	[======>.............] verified: 36.0% (66456/102360)K
	finish: 0:00:07 speed: 8,976 (8,976) K/sec
""",
        [run(25590, 16614, 4, 25590, 4, 8192), run(25590, 16614, 4, 25590, 4)],
    ),
    (
        "small sync by bitmap",
        """\
 0: cs:SyncSource ro:Primary/Secondary ds:UpToDate/Inconsistent C r-----
    ns:720 nr:0 dw:1088 dr:307812 al:10 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:368
	[===================>] sync'ed:100.0% (368/1088)K
	finish: 0:00:00 speed: 720 (720) K/sec
 1: cs:SyncTarget ro:Secondary/Primary ds:Inconsistent/UpToDate C r-----
    ns:0 nr:103092 dw:103092 dr:204720 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:368
	[===================>] sync'ed:100.0% (368/1088)K
	finish: 0:00:00 speed: 720 (720) want: 500 K/sec
""",
        [run(272, 92, 0, 272, 0), run(272, 92, 0, 272, 0, 500)],
    ),
    (
        "requests suspended",
        """\
 0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C s-----
    ns:1088 nr:0 dw:1088 dr:308180 al:10 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:0
""",
        [],
    ),
    (
        "primary without a disk",
        """\
 0: cs:Connected ro:Primary/Secondary ds:Diskless/UpToDate C r-----
    ns:1088 nr:0 dw:1088 dr:308180 al:10 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:0
""",
        [],
    ),
    (
        "ahead and behind, nothing moved yet",
        """\
 0: cs:SyncSource ro:Primary/Secondary ds:UpToDate/Inconsistent A r-----
    ns:124 nr:0 dw:4048 dr:0 al:10 bm:0 lo:0 pe:16 ua:0 ap:16 ep:1 wo:f oos:3860
	[===================>] sync'ed:100.0% (3860/3860)K
	finish: 0:00:09 speed: 0 (0) K/sec
 1: cs:Behind ro:Secondary/Primary ds:Outdated/UpToDate A r-----
    ns:0 nr:64 dw:64 dr:0 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:3796
""",
        [run(965, 965, 0, 965, 0)],
    ),
    (
        "5 GiB on minors 2 and 3: blank line and MiB",
        """\

 2: cs:SyncSource ro:Primary/Secondary ds:UpToDate/Inconsistent C r-----
    ns:34408 nr:0 dw:0 dr:34408 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:5208276
	[>....................] sync'ed:  0.8% (5084/5116)M
	finish: 0:09:58 speed: 8,600 (8,600) K/sec
 3: cs:SyncTarget ro:Secondary/Primary ds:Inconsistent/UpToDate C r-----
    ns:0 nr:34408 dw:34408 dr:0 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:5208276
	[>....................] sync'ed:  0.8% (5084/5116)M
	finish: 0:09:58 speed: 8,600 (8,600) want: 8,192 K/sec
""",
        [run(1310671, 1302069, 4, 1310671, 4), run(1310671, 1302069, 4, 1310671, 4, 8192)],
    ),
    (
        "waits for another minor; a later one runs",
        """\
 0: cs:PausedSyncS ro:Primary/Secondary ds:UpToDate/Inconsistent C ra----
    ns:1640 nr:0 dw:0 dr:1640 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:100720

 2: cs:SyncSource ro:Primary/Secondary ds:UpToDate/Inconsistent C r-----
    ns:456704 nr:0 dw:0 dr:456704 al:8 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:4785980
	[>...................] sync'ed:  8.8% (4672/5116)M
	finish: 0:02:37 speed: 30,444 (30,444) K/sec
""",
        [run(25590, 25180, 1, 25590, 1), run(1310671, 1196495, 15, 1310671, 15)],
    ),
    (
        "unconfigured after a gap",
        """\

 1: cs:PausedSyncT ro:Secondary/Primary ds:Inconsistent/UpToDate C r-pu--
    ns:0 nr:40960 dw:40960 dr:0 al:0 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:f oos:1007548

 4: cs:Unconfigured
""",
        [],
    ),
]


def read_volumes(text: str, runs: list[Progress]) -> list[ResourceSnapshot]:
    """The reverse of proc_text: one resource per minor, with the given progress in order."""
    resources: list[ResourceSnapshot] = []
    left = list(runs)
    for line in text.splitlines():
        if unconfigured := re.match(r"^ *(\d+): cs:Unconfigured$", line):
            resources.append(unconfigured_resource(int(unconfigured[1])))
        elif state := STATE_LINE.match(line):
            resources.append(configured_resource(state, left))
        elif line.startswith("    ns:"):
            volume = resources[-1].volumes[0]
            for word in line.split():
                name, value = word.split(":")
                setattr(volume, name, value if name == "wo" else int(value))
    assert not left, "every progress of the table must have been used"
    return resources


def unconfigured_resource(minor: int) -> ResourceSnapshot:
    volume = VolumeSnapshot(
        0, minor, f"/dev/drbd{minor}", "", 0,
        cs="StandAlone", role="Secondary", peer_role="Unknown", disk="Diskless", peer_disk="DUnknown",
    )  # fmt: skip
    return ResourceSnapshot(f"r{minor}", "alpha", "beta", "StandAlone", "", [volume])


def configured_resource(state: re.Match[str], runs: list[Progress]) -> ResourceSnapshot:
    word = state.groupdict()
    flags, minor = word["flags"], int(word["minor"])
    volume = VolumeSnapshot(
        0, minor, f"/dev/drbd{minor}", "/dev/vda", 204720,
        cs=word["cs"], role=word["role"], peer_role=word["peer_role"],
        disk=word["disk"], peer_disk=word["peer_disk"],
        susp=flags[0] == "s", aftr_isp=flags[1] == "a", peer_isp=flags[2] == "p",
        user_isp=flags[3] == "u", congested=flags[4], al_suspended=flags[5] == "s",
    )  # fmt: skip
    if runs and ("Sync" in word["cs"] or "Verify" in word["cs"]):
        volume.progress = runs.pop(0)
    return ResourceSnapshot(
        f"r{minor}", "alpha", "beta", word["cs"], word["protocol"].strip(), [volume]
    )


@pytest.mark.parametrize(
    ("text", "runs"), [row[1:] for row in RECORDED], ids=[row[0] for row in RECORDED]
)
def test_text_equals_what_the_kernel_wrote(text: str, runs: list[Progress]) -> None:
    written = proc_text(read_volumes(text, runs))
    header, body = written.split("\n", 2)[:2], written.split("\n", 2)[2]
    assert header[0] == "version: 8.4.11 (api:1/proto:100-101)"
    assert header[1].startswith("replicator ")
    assert body == text


def test_minors_are_in_order_whatever_the_order_of_resources() -> None:
    text = proc_text([unconfigured_resource(7), unconfigured_resource(0), unconfigured_resource(1)])
    assert text.splitlines()[2:] == [
        " 0: cs:Unconfigured", " 1: cs:Unconfigured", "", " 7: cs:Unconfigured",
    ]  # fmt: skip


@pytest.mark.parametrize("reason", ["susp", "susp_nod", "susp_fen"])
def test_every_kind_of_suspension_shows_in_the_first_column(reason: str) -> None:
    (text,) = (row[1] for row in RECORDED if row[0] == "requests suspended")
    (resource,) = read_volumes(text, [])
    resource.volumes[0].susp = False
    setattr(resource.volumes[0], reason, True)
    assert " s-----\n" in proc_text([resource])


def test_a_run_without_marks_for_three_minutes_is_called_stalled() -> None:
    _, second = progress_lines("SyncSource", run(25590, 20470, 181, 20470, 400))
    assert second.endswith(" K/sec (stalled)")
    _, second = progress_lines("SyncSource", run(25590, 20470, 180, 20470, 400))
    assert second.endswith(" K/sec")


def test_sixteen_tebibytes_and_more_use_the_coarse_shift() -> None:
    total = 1 << 32
    assert per_mille(total, total // 2) == 1000 - (total // 2 >> 16) * 1000 // ((total >> 16) + 1)


bits = st.integers(min_value=0, max_value=1 << 40)


@given(total=bits, left=bits)
def test_percent_and_bar_never_leave_their_bounds(total: int, left: int) -> None:
    mille = per_mille(total, left)
    assert 0 <= mille <= 1000
    inside = bar(mille)[1:-1]
    assert len(inside) == (21 if mille < 50 else 20)
    assert inside.strip("=.") == ">"
    assert len(percent_text(mille)) == 5
    assert 0.0 <= done_percent(run(total, left, 1, left, 1)) <= 100.0


@given(total=bits, steps=st.lists(bits, min_size=2))
def test_progress_never_goes_backwards_while_less_is_left(total: int, steps: list[int]) -> None:
    shown = [
        per_mille(total, left) for left in sorted((min(s, total) for s in steps), reverse=True)
    ]
    assert all(earlier <= later for earlier, later in pairwise(shown))


@given(
    total=bits, left=st.integers(-(1 << 33), 1 << 40), mark_left=bits,
    mark_age=st.floats(-10, 1e6), elapsed=st.floats(-10, 1e6),
)  # fmt: skip
def test_speeds_are_never_negative_and_lines_have_their_form(
    total: int, left: int, mark_left: int, mark_age: float, elapsed: float
) -> None:
    progress = run(total, left, mark_age, mark_left, elapsed, 100)
    rate = speeds(progress)
    assert min(rate.recent, rate.average, rate.seconds_left) >= 0
    first, second = progress_lines("SyncTarget", progress)
    assert re.fullmatch(r"\[=*>\.*\] sync'ed:[ \d]{3}\.\d% \(\d+/\d+\)[KM]", first)
    assert re.fullmatch(
        r"finish: \d+:\d\d:\d\d speed: [\d,]+ \([\d,]+\) want: 100 K/sec( \(stalled\))?", second
    )


def test_units_change_above_four_gibibytes() -> None:
    assert amounts_text(1 << 20, 5) == f"(20/{4 << 20})K"
    assert amounts_text((1 << 20) + 1, 1 << 20) == "(4096/4096)M"


def test_durations_count_hours_beyond_a_day() -> None:
    assert duration_text(0) == "0:00:00"
    assert duration_text(100 * 3600 + 61) == "100:01:01"
