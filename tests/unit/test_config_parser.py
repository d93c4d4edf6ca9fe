"""The grammar: what is accepted, what it means, and how a mistake is shown."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.config import Address, MetaDisk
from replicator.errors import ConfigError, ConfigSyntaxError, ReplicatorError
from tests.unit.config_texts import ALICE, BOB, load_text, resource, second, view_of

ISSUE_EXAMPLE = """\
global { usage-count yes; }
common { protocol C; }
resource r0 {
  on node01 { device /dev/drbd0; disk /dev/sda7; address 10.0.0.2:7789; meta-disk internal; }
  on node02 { device /dev/drbd0; disk /dev/sda7; address 10.0.0.3:7789; meta-disk internal; }
}
"""


def test_the_classic_two_node_example_is_read_as_it_stands() -> None:
    config = load_text(ISSUE_EXAMPLE)
    view = config.view("r0", "node01")
    assert config.warnings == []
    assert (view.node, view.peer) == ("node01", "node02")
    assert view.address == Address("ipv4", "10.0.0.2", 7789)
    assert view.peer_address == Address("ipv4", "10.0.0.3", 7789)
    assert view.net.protocol == "C"
    volume = view.volumes[0]
    assert (volume.number, volume.minor, volume.device) == (0, 0, "/dev/drbd0")
    assert (volume.disk, volume.meta_disk) == ("/dev/sda7", MetaDisk("internal"))


def test_it_is_the_same_without_any_line_break() -> None:
    assert load_text(ISSUE_EXAMPLE.replace("\n", " ")).view("r0", "node02").peer == "node01"


@pytest.mark.parametrize(
    ("device", "path", "minor"),
    [
        ("/dev/drbd5", "/dev/drbd5", 5),
        ("drbd5", "/dev/drbd5", 5),
        ('"/dev/drbd5"', "/dev/drbd5", 5),
        ("minor 7", "/dev/drbd7", 7),
        ("/dev/drbd7 minor 7", "/dev/drbd7", 7),
        ("/dev/drbd_mail minor 3", "/dev/drbd_mail", 3),
        ("minor 1048575", "/dev/drbd1048575", 1048575),
    ],
)
def test_a_device_is_named_by_path_by_minor_or_by_both(device: str, path: str, minor: int) -> None:
    volume = view_of(resource(alice=ALICE.replace("/dev/drbd0", device))).volumes[0]
    assert (volume.device, volume.minor) == (path, minor)


@pytest.mark.parametrize(
    ("statement", "meta_disk"),
    [
        ("meta-disk internal", MetaDisk("internal")),
        ("flexible-meta-disk internal", MetaDisk("internal")),
        ("meta-disk /dev/sdc1", MetaDisk("flexible", "/dev/sdc1")),
        ("flexible-meta-disk /dev/sdc1", MetaDisk("flexible", "/dev/sdc1")),
        ("meta-disk /dev/sdc1 [3]", MetaDisk("indexed", "/dev/sdc1", 3)),
        ("meta-disk /dev/sdc1[0]", MetaDisk("indexed", "/dev/sdc1", 0)),
    ],
)
def test_metadata_is_internal_flexible_or_in_a_numbered_slot(
    statement: str, meta_disk: MetaDisk
) -> None:
    text = resource(alice=ALICE.replace("meta-disk internal", statement))
    assert view_of(text).volumes[0].meta_disk == meta_disk


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("10.0.0.9:1", Address("ipv4", "10.0.0.9", 1)),
        ("ipv4 10.0.0.9:65535", Address("ipv4", "10.0.0.9", 65535)),
        ("10.0.0.9 : 7788", Address("ipv4", "10.0.0.9", 7788)),
        ("ipv6 [fd01::1]:7800", Address("ipv6", "fd01::1", 7800)),
        ("ipv6 [fe80::1%eth0]:7800", Address("ipv6", "fe80::1%eth0", 7800)),
        ("ipv6 [::ffff:10.0.0.9]:7800", Address("ipv6", "::ffff:10.0.0.9", 7800)),
    ],
)
def test_addresses_are_ipv4_or_bracketed_ipv6(written: str, address: Address) -> None:
    bob = BOB if address.family == "ipv4" else BOB.replace("10.0.0.3", "ipv6 [fd01::9]")
    text = resource(alice=ALICE.replace("10.0.0.2:7789", written), bob=bob)
    assert view_of(text).address == address


def test_hosts_and_volumes_inherit_what_they_do_not_say_themselves() -> None:
    view = view_of(
        resource(
            "device minor 4; disk /dev/sdx; meta-disk internal;",
            alice="address 10.0.0.2:1; disk /dev/own;",
            bob="address 10.0.0.3:1;",
        )
    )
    assert (view.volumes[0].minor, view.volumes[0].disk) == (4, "/dev/own")
    assert view.volumes[0].implicit


def test_a_volume_of_the_resource_and_one_of_the_host_are_joined_field_by_field() -> None:
    text = resource(
        "disk { resync-rate 1M; al-extents 257; }\n"
        "volume 1 { device minor 1; disk /dev/b; meta-disk internal; disk { resync-rate 2M; } }\n"
        "volume 0 { device minor 0; meta-disk internal; }",
        alice="address 10.0.0.2:1; volume 0 { disk /dev/a; disk { al-extents 300; } }",
        bob="address 10.0.0.3:1; volume 0 { disk /dev/c; }",
    )
    first, other = view_of(text).volumes
    assert (first.number, first.disk, first.minor) == (0, "/dev/a", 0)
    assert (first.options.resync_rate, first.options.al_extents) == (1024, 300)
    assert (other.number, other.disk, other.options.resync_rate) == (1, "/dev/b", 2048)
    assert view_of(text, "bob").volumes[0].options.al_extents == 257


def test_a_resource_overrides_common_and_a_later_statement_an_earlier_one() -> None:
    common = "common { net { timeout 20; ping-int 5; protocol A; } handlers { split-brain a; } }\n"
    view = view_of(common + resource("protocol B; net { timeout 30; timeout 40; protocol C; }"))
    assert (view.net.timeout, view.net.ping_int, view.net.protocol) == (40, 5, "C")
    assert view.handlers == {"split-brain": "a"}


def test_the_spellings_of_8_3_mean_what_they_meant() -> None:
    text = resource(
        "protocol A;\n"
        "syncer { rate 10M; after r1; al-extents 257; verify-alg sha1; csums-alg md5; use-rle no;"
        " c-plan-ahead 0; on-no-data-accessible suspend-io; }\n"
        "disk { no-disk-flushes; no-md-flushes; }\n"
        "net { no-tcp-cork; allow-two-primaries no; }\n"
        'handlers { outdate-peer "/bin/fence now"; }\n'
        "startup { wfc-timeout 10; degr-wfc-timeout 20; outdated-wfc-timeout 30; }"
    )
    view = view_of(text + second())
    disk = view.volumes[0].options
    assert view.net.protocol == "A"
    assert (disk.resync_rate, disk.resync_after, disk.al_extents) == (10240, "r1", 257)
    assert (disk.c_plan_ahead, disk.disk_flushes, disk.md_flushes) == (0, False, False)
    assert (view.net.verify_alg, view.net.csums_alg, view.net.use_rle) == ("sha1", "md5", False)
    assert view.net.tcp_cork is False
    assert view.options.on_no_data_accessible == "suspend-io"
    assert view.handlers == {"fence-peer": "/bin/fence now"}
    startup = view.startup
    assert (startup.wfc_timeout, startup.degr_wfc_timeout) == (10, 20)
    assert startup.outdated_wfc_timeout == 30


def test_a_boolean_is_true_when_it_stands_alone() -> None:
    view = view_of(resource("net { always-asbp; use-rle no; allow-two-primaries yes; }"))
    assert (view.net.always_asbp, view.net.use_rle) == (True, False)
    assert view.net.allow_two_primaries is True


def test_quotes_keep_everything_and_a_backslash_takes_the_next_character() -> None:
    view = view_of(resource(r'net { cram-hmac-alg sha1; shared-secret "a;{}# \"b\" \\ c"; }'))
    assert view.net.shared_secret == 'a;{}# "b" \\ c'


def test_comments_and_skipped_sections_leave_no_trace() -> None:
    text = (
        "# resource rx { oops\n"
        "skip resource r9 { what { ever; } at all }\n"
        "skip { }\n" + resource("protocol C; # net {")
    )
    config = load_text(text)
    assert list(config.resources) == ["r0"]


def test_our_own_section_stands_in_common_in_a_resource_and_in_a_host() -> None:
    text = "common { replicator { threads 8; frontend native; attach none; } }\n" + resource(
        "replicator { threads 9; epoch-per-completion yes; }",
        alice=ALICE + "replicator { listen 127.0.0.1:10809; }",
    )
    alice, bob = view_of(text).replicator, view_of(text, "bob").replicator
    assert (alice.threads, alice.frontend, alice.attach) == (9, "native", "none")
    assert alice.epoch_per_completion is True
    assert alice.listen_address == ("127.0.0.1", 10809)
    assert bob.listen == "unix" and bob.listen_address is None


def test_an_ipv6_listen_address_loses_its_brackets() -> None:
    view = view_of(resource("replicator { listen [::1]:10809; }"))
    assert view.replicator.listen_address == ("::1", 10809)


MISTAKES = [
    # text, line:column of the caret, what is said, the hint
    ("resource r0 {\n net { protcol C; }\n}", "2:8", "section net (resource r0)", "'protocol'"),
    ("resource r0 {\n net { timeout 6s; }\n}", "2:16", "timeout: expected a number", "sectors"),
    ("resource r0 {\n net { timeout 60 }\n}", "2:19", "expected ';', found '}'", ""),
    ("resource r0 {\n net { timeout 60\n ping-int 3; }\n}", "2:18", "expected ';' after '60'", ""),
    ("resource r0 {\n net { shared-secret a+b; }\n}", "2:23", "found '+'", "double quotes"),
    ("resource r0 {\n onn alice { }\n}", "2:2", "found 'onn'", "did you mean 'on'?"),
    ("resorce r0 { }", "1:1", "found 'resorce'", "did you mean 'resource'?"),
    ("resource { }", "1:10", "expected a resource name", ""),
    ("resource r0 {\n net {", "2:7", "found end of file", ""),
    ("resource r0 {\n", "2:1", "found end of file", "missing in resource r0"),
    ("}", "1:1", "expected a keyword, found '}'", ""),
    ('resource r0 { disk "/dev/sda7; }', "1:20", "does not end on its line", ""),
    ("resource r0 { disk sda7; }", "1:20", "expected an absolute path", "/dev/sda7"),
    ("resource r0 { device /dev/sda; }", "1:22", "begins with /dev/drbd", ""),
    ("resource r0 { device /dev/drbd_x; }", "1:22", "expected a minor number", "minor N"),
    ("resource r0 { device /dev/drbd1 minor 2; }", "1:22", "not go with minor 2", "/dev/drbd2"),
    ("resource r0 { device minor 1048576; }", "1:28", "from 0 to 1048575", ""),
    ("resource r0 { device /dev/drbd1048576; }", "1:22", "from 0 to 1048575", ""),
    ("resource r0 { device minor x; }", "1:28", "a minor number from 0", ""),
    ("resource r0 { meta-disk /dev/x[y]; }", "1:32", "a metadata slot", ""),
    ("resource r0 { flexible-meta-disk /dev/x[1]; }", "1:40", "expected ';'", ""),
    ("resource r0 { on a { address host:77; } }", "1:30", "names are not looked up", ""),
    ("resource r0 { on a { address 10.0.0.256:77; } }", "1:30", "expected an IPv4", ""),
    ("resource r0 { on a { address 10.0.0.2; } }", "1:38", "expected ':'", "10.0.0.2:7789"),
    ("resource r0 { on a { address 10.0.0.2:0; } }", "1:39", "a port from 1 to 65535", ""),
    ("resource r0 { on a { address 10.0.0.2:65536; } }", "1:39", "a port from 1", ""),
    ("resource r0 { on a { address [::1]:7; } }", "1:30", "an IPv4 address", "ipv6 [...]:PORT"),
    ("resource r0 { on a { address ipv6 ::1:7; } }", "1:35", "expected '['", ""),
    ("resource r0 { on a { address ipv6 [zz]:7; } }", "1:36", "an IPv6 address", ""),
    ("resource r0 { on { } }", "1:18", "expected a host name", ""),
    ("resource r0 { on a { disk { } } }", "1:22", "disk options cannot stand", "volume"),
    ("resource r0 { floating 10.0.0.1:7 { address 10.0.0.1:7; } }", "1:37", "in its head", ""),
    ("resource r0 { volume x { } }", "1:22", "a volume number from 0", ""),
    ("resource r0 { volume 65536 { } }", "1:22", "a volume number from 0 to 65535", ""),
    ("resource r0 { handlers { split-brain /bin/echo a; } }", "1:48", "expected ';'", ""),
    ("resource r0 { startup { become-primary-on ; } }", "1:43", "a host name", ""),
    ("resource r0 { startup { stacked-timeouts yes; } }", "1:42", "expected ';'", ""),
    ("resource r0 { disk { no-disk-flushes yes; } }", "1:38", "expected ';'", ""),
    ("resource r0 { net { } net { } }", "1:23", "section net is given twice", "keep one"),
    ("resource r0 { protocol C; protocol A; }", "1:27", "protocol is given twice", ""),
    ("resource r0 { disk /a; disk /b; }", "1:24", "disk is given twice", ""),
    ("resource r0 { volume 0 { } volume 0 { } }", "1:35", "volume 0 is given twice", ""),
    ("resource r0 { } resource r0 { }", "1:26", "resource r0 is defined twice", ""),
    ("common { } common { }", "1:12", "more than one common section", ""),
    ("global { } global { }", "1:12", "more than one global section", ""),
    ("global { usage-count maybe; }", "1:22", "usage-count: expected one of yes, no, ask", ""),
    ("common { device minor 1; }", "1:10", "a keyword in common", ""),
    ("resource all { }", "1:10", "'all' is reserved", ""),
    ("resource a/b { }", "1:10", "must not contain '/'", ""),
    ("resource .. { }", "1:10", "nor begin with '.'", ""),
    ('resource "" { }', "1:10", "is empty", ""),
    (f"resource {'x' * 128} {{ }}", "1:10", "longer than 127 bytes", ""),
    (f"resource {'x' * 129} {{ }}", "1:10", "at most 128 characters", ""),
    (f'resource r0 {{ disk "{"x" * 5000}"; }}', "1:20", "at most 4096 characters", ""),
    ("resource \u00e4 { }", "1:10", "expected a resource name, found '\u00e4'", ""),
    ("skip resource r0", "1:17", "'{' after skip", ""),
    ("skip { { }", "1:11", "'}' that ends the section", ""),
    ("include ;", "1:9", "a file name or pattern", ""),
    ("resource r0 { include x; }", "1:15", "a keyword in resource r0", ""),
]


@pytest.mark.parametrize(
    ("text", "place", "said", "hint"), MISTAKES, ids=[one[0][:60] for one in MISTAKES]
)
def test_a_mistake_is_shown_with_its_place_the_line_and_a_way_out(
    text: str, place: str, said: str, hint: str
) -> None:
    with pytest.raises((ConfigSyntaxError, ConfigError)) as caught:
        load_text(text)
    message = caught.value.message
    assert message.startswith(f"drbd.conf:{place}: "), message
    assert said in message, message
    assert hint in caught.value.hint, caught.value.hint
    if "end of file" not in message and "ends the section" not in message:
        excerpt, caret = message.split("\n")[1:3]
        assert caret.strip() == "^"
        if len(text) < 90:
            column = int(place.split(":")[1])
            assert caret.index("^") == 4 + column - 1
            assert excerpt[4:] == text.split("\n")[int(place.split(":")[0]) - 1].rstrip()


def test_a_syntax_error_and_a_wrong_value_end_with_different_exit_codes() -> None:
    with pytest.raises(ConfigSyntaxError) as caught:
        load_text("resource r0 { nett { } }")
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError) as refused:
        load_text("resource r0 { net { timeout 0; } }")
    assert refused.value.exit_code == 10


def test_control_characters_of_a_file_never_reach_the_terminal() -> None:
    with pytest.raises(ConfigSyntaxError) as caught:
        load_text("resource r0 {\x1b[2J\udc80 }")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", str(caught.value))
    assert "\udc80" not in str(caught.value)


WORDS = """resource r0 on alice bob { } ; { } net disk "a b" "q 10.0.0.2:7789 : [ ] ipv6 ::1
volume 0 1 device minor disk /dev/x meta-disk internal address protocol C timeout 60 syncer rate 10M
include skip floating common global usage-count yes handlers split-brain \\ \u00e4 \x00 \udcff"""


@given(st.lists(st.sampled_from([*WORDS.split(), "#", "\n"]), max_size=40).map(" ".join))
def test_no_sequence_of_words_ends_in_anything_but_a_configuration_or_an_error(text: str) -> None:
    try:
        load_text(text).dump()
    except ReplicatorError as error:
        assert error.message


@given(
    st.integers(0, len(ISSUE_EXAMPLE) - 1),
    st.integers(0, 30),
    st.text(st.characters(codec="utf-8"), max_size=5),
)
def test_no_damage_to_a_good_file_ends_in_a_traceback(at: int, cut: int, put: str) -> None:
    text = ISSUE_EXAMPLE[:at] + put + ISSUE_EXAMPLE[at + cut :]
    try:
        load_text(text).dump()
    except ReplicatorError as error:
        assert error.message
