"""Our reading of drbd.conf against that of drbdadm and drbdsetup of DRBD 8.4, on random input.

The real tools need no kernel module to parse, dump and describe their options. No expectations
are written down here: both sides must say the same.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from replicator.config import Config, NodeView, Where, load
from replicator.config.option_table import ALL_OPTIONS, SECTIONS
from replicator.config.options import Kind, Option, read_value
from replicator.errors import ReplicatorError
from tests.conftest import find_program
from tests.integration.config_generator import HOSTS, MUTATIONS, Generator, base

pytestmark = pytest.mark.needs("drbdadm")

SEEDS = range(int(os.environ.get("CONFIG_SEEDS", "150")))
DRBDSETUP_84 = "/lib/drbd/drbdsetup-84"


def drbdadm(path: Path) -> subprocess.CompletedProcess[str]:
    """`drbdadm dump all` of the 8.4 generation, as host alice."""
    environment = {**os.environ, "__DRBD_NODE__": "alice", "DRBD_DRIVER_VERSION_OVERRIDE": "8.4.0"}
    return subprocess.run(
        [find_program("drbdadm"), "-c", str(path), "dump", "all"],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env=environment,
        timeout=30,
    )


def dump_of(path: Path) -> str:
    """drbdadm's dump; fails the test if it refuses the file."""
    done = drbdadm(path)
    assert done.returncode == 0, f"drbdadm refuses {path.read_text()}\n{done.stderr}"
    return done.stdout


def written(path: Path, text: str) -> Path:
    path.write_text(text, errors="surrogateescape")
    return path


def placeless(view: NodeView) -> NodeView:
    return replace(view, where=Where("", 0), config_file="")


def meaning(config: Config) -> dict[str, object]:
    """All that a configuration says, without the places where it says so and our own timeouts."""
    addresses = [
        host.address.endpoint
        for one in config.resources.values()
        for host in one.hosts
        if host.kind == "floating"
    ]
    globals_ = config.global_options
    result: dict[str, object] = {
        "global": (globals_.usage_count, globals_.disable_ip_verification),
    }
    for node in (*HOSTS, *addresses):
        result[node] = [placeless(view) for view in config.views(node)]
    for name, resource in config.resources.items():
        result[f"resource {name}"] = (
            [(host.kind, host.names, host.address) for host in resource.hosts],
            [
                [
                    (one.number, one.implicit, one.device.path, one.disk, one.meta_disk)
                    for one in volumes
                ]
                for volumes in (host.volumes for host in resource.hosts)
            ],
            # A place is part of some reasons.
            bool(resource.unusable),
        )
    return result


def statements(dump: str) -> list[str]:
    """A dump line by line without comments, blanks, and the timeouts drbdadm puts in by itself."""
    lines = [" ".join(line.split()) for line in dump.split("\n")]
    return [
        line for line in lines if line and not line.startswith("#") and "cmd-timeout" not in line
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_configuration_means_the_same_to_drbdadm_and_to_us(
    seed: int, tmp_path: Path
) -> None:
    text = Generator(seed).config()
    original = written(tmp_path / "original.conf", text)
    ours = load(str(original))
    theirs = dump_of(original)
    reread = load(str(written(tmp_path / "theirs.conf", theirs)))
    assert meaning(reread) == meaning(ours), text

    back = dump_of(written(tmp_path / "ours.conf", ours.dump()))
    assert statements(back) == statements(theirs), text


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MUTATIONS)
def test_what_drbdadm_refuses_we_refuse(name: str, seed: int, tmp_path: Path) -> None:
    text = MUTATIONS[name](base(), random.Random(f"{name} {seed}"))
    assert text != base()
    path = written(tmp_path / "drbd.conf", text)
    assert drbdadm(path).returncode != 0, f"drbdadm accepts\n{text}"
    with pytest.raises(ReplicatorError) as caught:
        load(str(path))
    assert str(path) in caught.value.message


def test_the_configuration_that_the_mutations_start_from_is_valid(tmp_path: Path) -> None:
    path = written(tmp_path / "drbd.conf", base())
    dump_of(path)
    assert load(str(path)).unusable("alice") == {}


def described(command: str) -> dict[str, ET.Element]:
    """The options of one drbdsetup command, as it describes them itself."""
    if not os.path.exists(DRBDSETUP_84):
        pytest.fail(f"needs {DRBDSETUP_84} (Debian: drbd-utils)", pytrace=False)
    done = subprocess.run(
        [DRBDSETUP_84, "xml-help", command], capture_output=True, text=True, timeout=30, check=True
    )
    return {str(one.get("name")): one for one in ET.fromstring(done.stdout).iter("option")}


NOT_OPTIONS = {"set-defaults", "tentative", "discard-my-data"}
# The manual page allows activity logs of 7 to 66 extents; drbdsetup raised its minimum later.
WIDER = {"al-extents": 7}
# Defaults of our own, on purpose: (drbdsetup's, ours). docs/configuration.md says why.
OUR_DEFAULTS = {
    "c-delay-target": ("10", 1),
    "c-fill-target": ("100", 0),
    "c-max-rate": ("102400", 4 << 20),
    "c-min-rate": ("250", 4096),
}
# Only the older tools know it.
OLDER = {"use-bmbv"}


@pytest.mark.parametrize(
    ("command", "section"),
    [("net-options", "net"), ("attach", "disk"), ("resource-options", "options")],
)
def test_our_table_has_the_options_ranges_and_defaults_of_drbdsetup(
    command: str, section: str
) -> None:
    theirs = {name: one for name, one in described(command).items() if name not in NOT_OPTIONS}
    ours = {name: one for name, one in SECTIONS[section].items() if name not in OLDER}
    assert set(ours) == set(theirs)
    for name, option in ours.items():
        _compare(option, theirs[name])


def _compare(option: Option, theirs: ET.Element) -> None:
    kind, default = theirs.get("type"), theirs.findtext("default")
    if kind == "handler":
        handlers = [one.text for one in theirs.iter("handler")]
        assert list(option.choices) == handlers, option.name
    elif kind == "boolean":
        assert option.kind is Kind.BOOLEAN and default == ("yes" if option.default else "no")
    elif option.name == "resync-after":
        assert kind == "numeric"  # drbdadm turns the resource's name into a minor
    elif kind == "numeric":
        prefix = {"k": 1024, "s": 512, "1": 1}[theirs.findtext("unit_prefix") or "1"]
        wanted = OUR_DEFAULTS.get(option.name, (str(option.default), option.default))
        assert (default, option.default) == wanted, option.name
        assert option.maximum == int(theirs.findtext("max") or ""), option.name
        minimum = WIDER.get(option.name, int(theirs.findtext("min") or ""))
        assert option.minimum == minimum, option.name
        assert (option.unit.size or 1) == prefix, option.name
    else:
        assert kind == "string" and option.default == "", option.name


RANGE = re.compile(r": (\S+) (\S+) => (\d+)[ks]? out of range \[(\d+)\.\.(\d+)\]")
# Those whose range drbdadm itself checks; of the others only drbdsetup knows.
CHECKED = (
    "timeout connect-int ping-int ko-count max-buffers max-epoch-size sndbuf-size rcvbuf-size "
    "congestion-extents resync-rate c-plan-ahead c-delay-target c-fill-target c-max-rate c-min-rate"
)


@pytest.mark.parametrize("name", CHECKED.split())
@pytest.mark.parametrize("suffix", ["", "k", "M", "G"])
def test_a_number_out_of_range_is_the_same_number_to_drbdadm(
    name: str, suffix: str, tmp_path: Path
) -> None:
    option = next(one for one in ALL_OPTIONS if one.name == name and one.section in ("net", "disk"))
    scale = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}[suffix]
    count = (option.maximum + 7) * (option.unit.size or 1) // scale + 1
    inner = f"{option.section} {{ {name} {count}{suffix}; }}"
    path = written(tmp_path / "drbd.conf", base().replace("protocol C;", inner))
    said = RANGE.search(drbdadm(path).stderr)
    assert said, "drbdadm does not check this range"
    # Read by an option without bounds, so that our number can be seen.
    ours = read_value(replace(option, maximum=1 << 62), f"{count}{suffix}")
    assert (said[1], said[2], int(said[3])) == (name, f"{count}{suffix}", ours)
    assert (int(said[4]), int(said[5])) == (option.minimum, option.maximum)
