"""Status for people and programs: drbdadm's words where they exist, and what we add to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replicator.engine.snapshot import Progress, ResourceSnapshot, VolumeSnapshot
from replicator.status.document import ResourceState, status_document
from replicator.status.human import resource_text, status_text, unconfigured_text


def volume(number: int = 0, **changes: Any) -> VolumeSnapshot:
    fields: dict[str, Any] = {
        "cs": "Connected",
        "role": "Primary",
        "peer_role": "Secondary",
        "disk": "UpToDate",
        "peer_disk": "UpToDate",
    } | changes
    return VolumeSnapshot(number, number, f"/dev/drbd{number}", "/dev/vda", 204720, **fields)


def resource(*volumes: VolumeSnapshot, **changes: Any) -> ResourceSnapshot:
    fields: dict[str, Any] = {"cstate": volumes[0].cs if volumes else "StandAlone"} | changes
    return ResourceSnapshot("alpha", "a", "b", protocol="C", volumes=list(volumes), **fields)


SYNC = Progress(False, 25590, 20470, 2.0, 2.0, 25590, None)


def test_a_connected_pair_reads_like_drbdadm_status() -> None:
    assert resource_text(resource(volume())) == (
        "alpha role:Primary\n"
        "  disk:UpToDate\n"
        "  peer role:Secondary node:b\n"
        "    replication:Established peer-disk:UpToDate\n"
    )


def test_waiting_for_the_peer_reads_connecting_and_hides_its_unknown_states() -> None:
    waiting = volume(
        cs="WFConnection", role="Secondary", peer_role="Unknown", disk="Inconsistent",
        peer_disk="DUnknown",
    )  # fmt: skip
    assert resource_text(resource(waiting)) == (
        "alpha role:Secondary\n  disk:Inconsistent\n  peer connection:Connecting node:b\n"
    )


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ("Outdated", " peer-disk:Outdated"),
        ("Inconsistent", " peer-disk:Inconsistent"),
        ("DUnknown", ""),
    ],
)
def test_what_is_known_of_a_peer_that_is_away_is_shown(known: str, words: str) -> None:
    alone = volume(cs="WFConnection", peer_role="Unknown", peer_disk=known)
    assert f"  peer connection:Connecting node:b{words}\n" in resource_text(resource(alone))


def test_handlers_that_run_and_frozen_io_are_shown() -> None:
    frozen = volume(cs="WFConnection", peer_role="Unknown", peer_disk="DUnknown", susp_fen=True)
    text = resource_text(resource(frozen, handlers=["fence-peer, for 3 s (at most 180 s)"]))
    assert "alpha role:Primary suspended:fencing\n" in text
    assert "  running handler: fence-peer, for 3 s (at most 180 s)\n" in text


def test_stand_alone_has_no_peer_line_and_shows_what_is_out_of_sync() -> None:
    alone = volume(cs="StandAlone", peer_role="Unknown", peer_disk="DUnknown", oos=1088)
    assert resource_text(resource(alone, last_error="split brain")) == (
        "alpha role:Primary\n  disk:UpToDate out-of-sync:1088\n  last error: split brain\n"
        "  StandAlone: does not look for the peer; to connect: replicator connect alpha"
        " (after a change of the configuration: down, up)\n"
    )


def test_a_disk_that_was_given_up_says_why_and_how_to_get_it_back() -> None:
    bare = volume(disk="Diskless", disk_error="local write at sector 8: no space left; detach")
    assert resource_text(resource(bare)).splitlines()[1:4] == [
        "  disk:Diskless",
        "    disk error: local write at sector 8: no space left; detach",
        "    Diskless: to use the disk again: replicator attach alpha/0",
    ]


def test_a_running_sync_shows_percentage_bar_and_speed() -> None:
    syncing = volume(cs="SyncSource", peer_disk="Inconsistent", oos=81880, progress=SYNC)
    assert resource_text(resource(syncing)).splitlines()[3:] == [
        "    replication:SyncSource peer-disk:Inconsistent done:20.00 out-of-sync:81880",
        "      [===>................] sync'ed: 24.0% (81880/102360)K",
        "      finish: 0:00:07 speed: 10,240 (10,240) K/sec",
    ]


def test_a_paused_sync_wraps_and_names_who_paused_it() -> None:
    paused = volume(
        cs="PausedSyncS", peer_disk="Inconsistent", user_isp=True, peer_isp=True, progress=SYNC
    )
    assert resource_text(resource(paused)).splitlines()[3:] == [
        "    replication:PausedSyncS peer-disk:Inconsistent done:20.00",
        "        resync-suspended:user,peer",
    ]


def test_several_volumes_carry_their_numbers() -> None:
    text = resource_text(resource(volume(0), volume(1, disk="Diskless", open_count=2)))
    assert text == (
        "alpha role:Primary\n"
        "  volume:0 disk:UpToDate\n"
        "  volume:1 disk:Diskless open:2\n"
        "    Diskless: to use the disk again: replicator attach alpha/1\n"
        "  peer role:Secondary node:b\n"
        "    volume:0 replication:Established peer-disk:UpToDate\n"
        "    volume:1 replication:Established peer-disk:UpToDate\n"
    )


def test_suspension_and_reasons_for_waiting_are_shown() -> None:
    stuck = volume(susp=True, susp_nod=True, waiting_for="fence-peer handler, 3 s")
    lines = resource_text(resource(stuck, waiting_for="the peer's answer")).splitlines()
    assert lines[0] == "alpha role:Primary suspended:no-data,user"
    assert lines[2] == "    waiting for: fence-peer handler, 3 s"
    assert lines[-1] == "  waiting for: the peer's answer"


def test_what_the_whole_resource_waits_for_is_said_once() -> None:
    stuck = resource(volume(waiting_for="the peer"), waiting_for="the peer (nothing listens there)")
    waits = [line for line in resource_text(stuck).splitlines() if "waiting" in line]
    assert waits == ["  waiting for: the peer (nothing listens there)"]


def test_blocks_of_resources_are_separated_by_an_empty_line() -> None:
    text = status_text([resource(volume()), resource(volume())])
    assert text.count("\n\n") == 2
    assert text.endswith("\n\n")


def test_a_resource_without_a_daemon_is_unconfigured() -> None:
    assert unconfigured_text("r9", "not up") == "r9 role:Unconfigured\n  not up\n"


def test_the_json_document_survives_json_and_holds_every_snapshot_field() -> None:
    syncing = resource(volume(cs="SyncSource", peer_disk="Inconsistent", progress=SYNC), pid=42)
    document = json.loads(json.dumps(status_document("a", [ResourceState("alpha", syncing)])))
    assert document["schema"] == 1
    assert document["node"] == "a"
    (shown,) = document["resources"]
    assert shown.keys() >= syncing.to_dict().keys()
    assert (shown["running"], shown["role"], shown["pid"]) == (True, "Primary", 42)
    progress = shown["volumes"][0]["progress"]
    assert progress["running"] is True
    assert progress["percent"] == 24.0
    assert progress["percent_exact"] == 20.0
    assert progress["speed"] == 10240


def test_the_json_document_says_why_there_is_no_fresh_snapshot() -> None:
    document = status_document(
        "a",
        [
            ResourceState("alpha", None, reason="not up"),
            ResourceState("beta", resource(volume()), stale=True, reason="no answer"),
        ],
    )
    down, stale = document["resources"]
    assert (down["running"], down["role"], down["cstate"], down["volumes"]) == (
        False, "Unconfigured", "Unconfigured", [],
    )  # fmt: skip
    assert down["reason"] == "not up"
    assert (stale["running"], stale["stale"], stale["role"]) == (False, True, "Primary")


@pytest.mark.parametrize("left", [-5, 0, 7, 25590, 99999])
def test_done_stays_between_0_and_100(left: int) -> None:
    odd = Progress(True, 25590, left, 1.0, 1.0, left, None)
    text = resource_text(resource(volume(cs="VerifyS", progress=odd)))
    done = float(text.split("done:")[1].split()[0])
    assert 0.0 <= done <= 100.0


def test_every_field_of_the_json_document_is_documented() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "status.md").read_text()
    document = status_document(
        "a", [ResourceState("alpha", resource(volume(cs="SyncSource", progress=SYNC)))]
    )
    (shown,) = document["resources"]
    (one,) = shown["volumes"]
    for name in [*document, *shown, *one, *one["progress"]]:
        assert f"`{name}`" in text, name


def test_what_the_network_has_not_taken_is_shown_in_whole_kib() -> None:
    assert "node:b unsent:2\n" in resource_text(resource(volume(), unsent=1025))
    assert "unsent" not in resource_text(resource(volume()))
