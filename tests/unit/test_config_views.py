"""What one node sees, what contradicts itself, and what cannot be run."""

from __future__ import annotations

import pytest

from replicator.config import Address
from replicator.config.settings import to_settings
from replicator.errors import ConfigError, UsageError
from tests.unit.config_texts import ALICE, BOB, load_text, resource, second, view_of

THREE = resource(after=f"on carol {{ {ALICE.replace('10.0.0.2', '10.0.0.4')} }}")


def test_each_node_sees_itself_first_and_the_other_as_its_peer() -> None:
    alice, bob = view_of(resource()), view_of(resource(), "bob")
    assert (alice.node, alice.peer, alice.peer_hosts) == ("alice", "bob", ("bob",))
    assert (bob.node, bob.peer) == ("bob", "alice")
    assert (alice.address, alice.peer_address) == (bob.peer_address, bob.address)
    assert alice.config_file == "drbd.conf" and str(alice.where) == "drbd.conf:1"


def test_the_sides_may_differ_in_everything_but_their_volume_numbers() -> None:
    bob = "device minor 9; disk /srv/r0.img; meta-disk /dev/m[1]; address 10.0.0.3:7000;"
    volume = view_of(resource(bob=bob), "bob").volumes[0]
    assert (volume.minor, volume.device, volume.disk) == (9, "/dev/drbd9", "/srv/r0.img")


def test_an_unknown_resource_is_refused_with_the_nearest_name() -> None:
    config = load_text(resource(name="mail") + second(name="www"))
    with pytest.raises(UsageError) as caught:
        config.view("mial", "alice")
    assert caught.value.message == "'mial' not defined in your config (for this host)."
    assert caught.value.hint == "did you mean 'mail'?"
    with pytest.raises(UsageError) as caught:
        config.view("zzz", "alice")
    assert caught.value.hint == "resources in drbd.conf: mail, www"
    with pytest.raises(UsageError):
        config.dump("zzz")


def test_a_node_that_is_no_host_of_the_resource_is_told_who_is() -> None:
    with pytest.raises(ConfigError) as caught:
        view_of(resource(), "carol")
    assert caught.value.message == "'r0' not defined in your config (for this host)."
    assert "alice, bob" in caught.value.hint and "'carol'" in caught.value.hint
    assert caught.value.exit_code == 10


def test_all_means_the_resources_of_this_node() -> None:
    elsewhere = second(name="other").replace("on alice", "on dora")
    config = load_text(resource() + elsewhere)
    assert [view.resource for view in config.views("alice")] == ["r0"]
    assert [view.resource for view in config.views("bob")] == ["r0", "other"]
    assert config.views("nobody") == []


def test_several_host_names_may_share_one_section() -> None:
    text = resource().replace("on bob", "on bob bobby")
    assert view_of(text, "bobby").peer == "alice"
    assert view_of(text).peer_hosts == ("bob", "bobby")


FLOATING = (
    "resource r0 { device minor 2; disk /dev/sda7; meta-disk internal;\n"
    "floating 10.1.1.31:7802;\nfloating 10.1.1.32:7802 { disk /dev/sdb; } }"
)


def test_a_floating_section_belongs_to_the_host_that_has_its_address() -> None:
    view = load_text(FLOATING, local=("10.1.1.32",)).view("r0", "whatever")
    assert view.address == Address("ipv4", "10.1.1.32", 7802)
    assert (view.peer, view.volumes[0].disk) == ("10.1.1.31:7802", "/dev/sdb")
    assert load_text(FLOATING).views("whatever") == []


@pytest.mark.parametrize("node", ["10.1.1.31", "10.1.1.31:7802"])
def test_a_floating_side_can_be_chosen_by_its_address(node: str) -> None:
    assert load_text(FLOATING).view("r0", node).volumes[0].disk == "/dev/sda7"


def test_two_floating_addresses_of_one_host_must_be_told_apart() -> None:
    config = load_text(FLOATING, local=("10.1.1.31", "10.1.1.32"))
    with pytest.raises(ConfigError) as caught:
        config.view("r0", "whatever")
    assert "--node 10.1.1.31:7802" in caught.value.hint


UNUSABLE = [
    ("three hosts", THREE, "found 3"),
    ("one host", f"resource r0 {{ on alice {{ {ALICE} }} }}", "found 1"),
    (
        "a proxy",
        resource(alice=ALICE + "proxy on alice { inside 127.0.0.1:1; outside 10.0.0.2:2; }"),
        "drbd-proxy",
    ),
    ("ssocks", resource(alice=ALICE.replace("address", "address ssocks")), "ssocks"),
    ("sci is ssocks", resource(alice=ALICE.replace("address", "address sci")), "ssocks"),
    ("sdp", resource(alice=ALICE.replace("address", "address sdp")), "sdp"),
    (
        "two families",
        resource(bob=BOB.replace("10.0.0.3", "ipv6 [::1]")),
        "one address is IPv4 and the other IPv6",
    ),
    (
        "two primaries over protocol A",
        resource("net { protocol A; allow-two-primaries; }"),
        "allow-two-primaries needs protocol C, found protocol A",
    ),
    (
        "stonith over protocol A",
        resource("protocol A; disk { fencing resource-and-stonith; }"),
        "resource-and-stonith needs protocol B or C",
    ),
    (
        "pull-ahead over protocol C",
        resource("net { on-congestion pull-ahead; congestion-fill 1M; }"),
        "on-congestion pull-ahead needs protocol A, found protocol C",
    ),
    (
        "a victim nobody knows",
        resource("net { after-sb-0pri discard-node-zoe; }"),
        "expected one of the hosts alice, bob, found zoe",
    ),
]


@pytest.mark.parametrize(
    ("text", "said"), [one[1:] for one in UNUSABLE], ids=[o[0] for o in UNUSABLE]
)
def test_what_cannot_be_run_is_told_at_once_and_refused_alone(text: str, said: str) -> None:
    config = load_text(text + second())
    assert [one for one in config.warnings if said in one and one.startswith("drbd.conf:1: ")]
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        config.view("r0", "alice")
    assert said in caught.value.message
    assert config.view("r1", "alice").resource == "r1"
    assert [view.resource for view in config.views("alice")] == ["r1"]
    assert list(config.unusable("alice")) == ["r0"]
    assert config.unusable("nobody") == {}


def test_a_stacked_resource_is_refused_and_no_part_of_all() -> None:
    stacked = (
        "resource r0-U {\n stacked-on-top-of r0 { device minor 10; address 10.0.0.9:77; }\n"
        " on carol { device minor 10; disk /x; meta-disk internal; address 10.0.0.10:77; } }"
    )
    config = load_text(resource() + stacked)
    assert any("stacked" in one for one in config.warnings)
    with pytest.raises(ConfigError, match="stacked"):
        config.view("r0-U", "carol")
    assert config.unusable("carol") == {}


OTHER_DISK = "/dev/sda8"
CONTRADICTIONS = [
    ("minor", second().replace("minor 1", "minor 0"), "minor 0 on alice is used twice"),
    (
        "device name",
        resource(alice=ALICE.replace("/dev/drbd0", "/dev/drbd_x minor 0")).replace("r0", "ra")
        + second().replace("minor 1", "/dev/drbd_x minor 1"),
        "device /dev/drbd_x on alice is used twice",
    ),
    ("address", second().replace("7790", "7789"), "address 10.0.0.2:7789 is used twice"),
    ("disk", second().replace("/dev/sdb1", "/dev/sda7"), "/dev/sda7 on alice is used twice"),
    (
        "metadata on a data disk",
        second().replace("meta-disk internal", "meta-disk /dev/sda7"),
        "/dev/sda7 on alice is used twice",
    ),
    (
        "metadata slot",
        resource(name="r2")
        .replace("internal", "/dev/m[0]")
        .replace("drbd0", "drbd2")
        .replace("sda7", "sda9")
        .replace("7789", "7792")
        + second().replace("internal", "/dev/m[0]"),
        "/dev/m [0] on alice is used twice",
    ),
    (
        "slot and whole device",
        resource(name="r2")
        .replace("internal", "/dev/m[0]")
        .replace("drbd0", "drbd2")
        .replace("sda7", "sda9")
        .replace("7789", "7792")
        + second().replace("internal", "/dev/m"),
        "/dev/m on alice is used twice",
    ),
    (
        "nbd address",
        second("replicator { listen 127.0.0.1:1; }")
        + resource("replicator { listen 127.0.0.1:1; }", name="r2")
        .replace("drbd0", "drbd2")
        .replace("sda7", "sda9")
        .replace("7789", "7792"),
        "listen 127.0.0.1:1 is used twice",
    ),
]


@pytest.mark.parametrize(
    ("other", "said"), [one[1:] for one in CONTRADICTIONS], ids=[one[0] for one in CONTRADICTIONS]
)
def test_two_resources_never_share_what_only_one_can_have(other: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(resource() + other)
    assert said in caught.value.message
    assert "first by resource" in caught.value.message


def test_slots_of_one_metadata_device_may_be_used_side_by_side() -> None:
    text = resource().replace("internal", "/dev/m[0]") + second().replace("internal", "/dev/m[1]")
    assert load_text(text).view("r1", "alice").volumes[0].meta_disk.index == 1


WITHIN = [
    (
        "tls required without certificates",
        resource("replicator { tls-required; }"),
        "tls-required is set, but tls-certificates is not",
    ),
    (
        "relative directory of certificates",
        resource("replicator { tls-certificates tls; }"),
        "tls-certificates: expected an absolute path, found tls",
    ),
    (
        "no address",
        resource(alice=ALICE.replace("address 10.0.0.2:7789;", "")),
        "'address' is missing",
    ),
    ("no device", resource(alice=ALICE.replace("device /dev/drbd0;", "")), "'device' is missing"),
    ("no disk", resource(alice=ALICE.replace("disk /dev/sda7;", "")), "'disk' is missing"),
    (
        "no meta-disk",
        resource(alice=ALICE.replace("meta-disk internal;", "")),
        "resource r0, on alice: 'meta-disk' is missing",
    ),
    ("host twice", resource().replace("on bob", "on alice"), "host alice is named twice"),
    ("same address", resource(bob=ALICE), "address 10.0.0.2:7789 is used twice"),
    (
        "both forms of volumes",
        resource("volume 1 { device minor 1; disk /a; meta-disk internal; }"),
        "both in volume sections and outside",
    ),
    (
        "volume on one side",
        resource(
            alice="address 10.0.0.2:7789; volume 0 { device minor 0; disk /a; meta-disk internal; }",
            bob="address 10.0.0.3:7789; volume 1 { device minor 0; disk /a; meta-disk internal; }",
        ),
        "volume 0 is defined on alice but not on bob",
    ),
    (
        "volume section on one side",
        resource(
            alice="address 10.0.0.2:7789; volume 0 { device minor 0; disk /a; meta-disk internal; }"
        ),
        "has a volume section on one host but not on the other",
    ),
    (
        "both become primary",
        resource("startup { become-primary-on both; }"),
        "allow-two-primaries is not set",
    ),
    (
        "a stranger becomes primary",
        resource("startup { become-primary-on zoe; }"),
        "expected one of the hosts alice, bob",
    ),
]


@pytest.mark.parametrize(
    ("text", "said"), [one[1:] for one in WITHIN], ids=[one[0] for one in WITHIN]
)
def test_a_resource_that_contradicts_itself_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(text)
    assert said in caught.value.message
    assert caught.value.message.startswith("drbd.conf:")


def test_all_contradictions_are_shown_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(resource(alice="", bob=""))
    assert len(caught.value.message.split("\n")) == 2
    many = "".join(resource(name=f"x{number}", alice="", bob="") for number in range(30))
    with pytest.raises(ConfigError, match="and 40 more"):
        load_text(many)


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ("net { shared-secret x; }", "NOT authenticated"),
        ("net { cram-hmac-alg sha1; }", "secret is empty"),
        ("net { timeout 110; }", "timeout is 11 s"),
        ("disk { al-extents 7; }", "counts as 67"),
        ("disk { resync-after rx; }", "resource rx, which does not exist"),
        ("proxy { memlimit 10M; plugin { zlib level 9; } }", "proxy (resource r0) is ignored"),
        ("ignore-on carol;", "obsolete"),
    ],
)
def test_a_trap_earns_a_warning_with_its_place(inner: str, said: str) -> None:
    warnings = load_text(resource(inner)).warnings
    assert any(said in one and one.startswith("drbd.conf:") for one in warnings), warnings


def test_the_engine_is_told_seconds_and_bytes() -> None:
    inner = (
        "net { timeout 25; ping-timeout 7; connect-int 3; ping-int 4; socket-check-timeout 9;"
        " max-buffers 8k; sndbuf-size 512k; rcvbuf-size 1M; ko-count 0; protocol B; use-rle no; }\n"
        "disk { size 10G; resync-rate 3M; c-plan-ahead 15; c-delay-target 5; c-fill-target 64k;"
        " c-max-rate 1G; c-min-rate 0; rs-discard-granularity 64k; al-extents 7; no-disk-drain;"
        " fencing resource-only; disk-timeout 25; }\n"
        "options { on-no-data-accessible suspend-io; }\n"
        "replicator { frontend native; epoch-per-completion; }"
    )
    settings = to_settings(view_of(resource(inner)))
    net, disk = settings.net, settings.volumes[0].disk
    assert (net.timeout, net.ping_timeout, net.socket_check_timeout) == (2.5, 0.7, 0.9)
    assert (net.connect_interval, net.ping_interval, net.ko_count) == (3.0, 4.0, 0)
    assert (net.max_buffers, net.sndbuf_size, net.rcvbuf_size) == (8192, 524288, 1048576)
    assert (net.protocol, net.use_rle) == ("B", False)
    assert (disk.size, disk.resync_rate) == (10 << 30, 3 << 20)
    assert (disk.c_plan_ahead, disk.c_delay_target, disk.c_fill_target) == (1.5, 0.5, 65536)
    assert (disk.c_max_rate, disk.c_min_rate) == (1 << 30, 0)
    assert (disk.rs_discard_granularity, disk.al_extents, disk.disk_drain) == (65536, 67, False)
    assert (disk.fencing, disk.disk_timeout) == ("resource-only", 2.5)
    assert settings.on_no_data_accessible == "suspend-io"
    assert (settings.frontend, settings.epoch_per_completion) == ("native", True)
    assert (settings.name, settings.node, settings.peer) == ("r0", "alice", "bob")
    volume = settings.volumes[0]
    assert (volume.number, volume.minor, volume.device) == (0, 0, "/dev/drbd0")
    assert volume.disk_path == "/dev/sda7"


def test_a_victim_named_by_host_is_local_on_one_node_and_remote_on_the_other() -> None:
    text = resource("net { after-sb-0pri discard-node-alice; }")
    assert to_settings(view_of(text)).net.after_sb_0pri == "discard-local"
    assert to_settings(view_of(text, "bob")).net.after_sb_0pri == "discard-remote"
