"""Files: includes, patterns, what cannot be read; and `dump`, which writes what was read."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.config import Config, load
from replicator.config.loader import MAX_DEPTH, MAX_FILE_BYTES, is_local_address
from replicator.config.model import Address
from replicator.errors import ConfigError, ConfigSyntaxError
from tests.unit.config_texts import MemoryFiles, load_text, resource, second


def write(root: Path, **texts: str) -> str:
    """Files below `root` (path parts joined by __, a dot as _dot_); the path of drbd.conf."""
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root / "drbd.conf")


def test_the_usual_tree_of_a_distribution_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        drbd_dot_conf='include "drbd.d/global_common.conf";\ninclude "drbd.d/*.res";\n',
        drbd_dot_d__global_common_dot_conf="global { usage-count no; }\ncommon { net { timeout 40; } }",
        drbd_dot_d__b_dot_res=second(),
        drbd_dot_d__a_dot_res=resource(),
        drbd_dot_d__old_dot_bak="not read {",
    )
    config = load(path)
    assert list(config.resources) == ["r0", "r1"]
    assert config.path == path
    assert config.view("r1", "alice").net.timeout == 40
    assert str(config.view("r1", "alice").where) == f"{tmp_path}/drbd.d/b.res:1"


def test_an_include_is_relative_to_the_file_it_stands_in(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        drbd_dot_conf="include sub/one.inc;",
        sub__one_dot_inc="include deeper/*.res;",
        sub__deeper__x_dot_res=resource(),
    )
    assert list(load(path).resources) == ["r0"]


def test_a_pattern_may_match_nothing_but_a_plain_name_must_exist(tmp_path: Path) -> None:
    assert load(write(tmp_path, drbd_dot_conf='include "drbd.d/*.res";')).resources == {}
    with pytest.raises(ConfigSyntaxError, match=r"drbd.conf:1:9: cannot include '.*/x.res'"):
        load(write(tmp_path, drbd_dot_conf='include "x.res";'))


def test_an_error_in_an_included_file_names_that_file(tmp_path: Path) -> None:
    path = write(tmp_path, drbd_dot_conf="include *.res;", a_dot_res="\nresource r0 { nett { } }")
    with pytest.raises(ConfigSyntaxError, match=r"/a.res:2:15: "):
        load(path)


@pytest.mark.parametrize(
    "texts",
    [
        {"a": "include a;"},
        {"a": "include b;", "b": "include a;"},
        {"a": "include [a];"},
    ],
)
def test_files_that_include_each_other_are_refused(texts: dict[str, str]) -> None:
    with pytest.raises(ConfigSyntaxError, match="includes itself"):
        load("a", files=MemoryFiles(**texts))


def test_includes_have_a_greatest_depth() -> None:
    texts = {f"f{number}": f"include f{number + 1};" for number in range(40)}
    with pytest.raises(ConfigSyntaxError, match=f"f{MAX_DEPTH - 1}:1:9: too many files"):
        load("f0", files=MemoryFiles(**texts))


def test_a_missing_file_a_directory_and_a_huge_file_are_plain_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nosuch: No such file or directory") as caught:
        load(str(tmp_path / "nosuch"))
    assert "--config-file" in caught.value.hint
    with pytest.raises(ConfigError, match="Is a directory"):
        load(str(tmp_path))
    (tmp_path / "huge").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than"):
        load(str(tmp_path / "huge"))
    files = MemoryFiles(a=PermissionError(13, "Permission denied"))
    with pytest.raises(ConfigError, match="a: Permission denied"):
        load("a", files=files)


def test_bytes_that_are_no_utf_8_do_no_harm_in_a_comment_and_are_refused_in_a_value(
    tmp_path: Path,
) -> None:
    path = tmp_path / "drbd.conf"
    path.write_bytes(b"# Gr\xfc\xdfe\n" + resource().encode())
    assert list(load(str(path)).resources) == ["r0"]
    path.write_bytes(resource('net { shared-secret "S"; }').encode().replace(b'"S"', b'"\xfc"'))
    with pytest.raises(ConfigError, match="text in UTF-8"):
        load(str(path))


def test_the_kernel_knows_which_addresses_are_local() -> None:
    assert is_local_address(Address("ipv4", "127.0.0.1", 7789))
    assert not is_local_address(Address("ipv4", "192.0.2.1", 7789))
    assert not is_local_address(Address("ipv6", "2001:db8::1", 7789))


ALICE7 = "device minor 7; disk /seven; meta-disk internal; address 10.0.0.2:9007;"
RICH = (
    "global { usage-count no; disable-ip-verification; minor-count 7; }\n"
    'common { protocol A; handlers { split-brain "echo \\"x\\" \\\\"; } startup { stacked-timeouts; } }\n'
    + resource(
        "disk { no-disk-flushes; resync-rate 10M; }\n"
        'net { protocol C; cram-hmac-alg sha1; shared-secret "disk"; after-sb-0pri discard-zero-changes; }\n'
        "startup { become-primary-on alice bob; }\n"
        "replicator { listen 127.0.0.1:10809; threads 4; }\n"
        "volume 3 { device /dev/drbd_x minor 3; disk /x; meta-disk internal; disk { size 1G; } }",
        alice='address ipv6 [fe80::1%eth0]:77; volume 1 { device minor 1; disk "/a b"; meta-disk /m[2]; }',
        bob="address ipv6 [::2]:77; volume 1 { device minor 1; disk /c; meta-disk /n; }",
        name='"r 0"',
    )
    + resource(name='"7"', alice=ALICE7, bob=ALICE7.replace("0.2:", "0.3:"))
    + "resource fl { device minor 2; disk /f; meta-disk internal; floating 10.1.1.1:9; floating 10.1.1.2:9; }"
)


def everything(config: Config) -> object:
    """All that a configuration means, without the places it stands in."""
    nodes = ("alice", "bob", "10.1.1.1", "10.1.1.2")
    views = [(node, view) for node in nodes for view in config.views(node)]
    return (
        config.global_options,
        [
            repr(view).replace(str(view.where), "").replace(repr(view.where), "")
            for _, view in views
        ],
        [
            (one.name, one.unusable, [host.title for host in one.hosts])
            for one in config.resources.values()
        ],
    )


def test_a_dump_means_the_same_and_dumps_to_itself() -> None:
    config = load_text(RICH)
    again = load_text(config.dump())
    assert everything(again) == everything(config)
    without_places = [line for line in config.dump().split("\n") if not line.startswith("#")]
    assert [line for line in again.dump().split("\n") if not line.startswith("#")] == without_places


def test_a_dump_is_written_as_drbdadm_writes_it() -> None:
    text = load_text("common { protocol C; }\n" + resource("disk { no-md-flushes; }")).dump()
    assert text == (
        "# drbd.conf\n"
        "\n"
        "common {\n"
        "    net {\n"
        "        protocol         C;\n"
        "    }\n"
        "}\n"
        "\n"
        "# resource r0: defined at drbd.conf:2\n"
        "resource r0 {\n"
        "    on alice {\n"
        "        device           /dev/drbd0 minor 0;\n"
        "        disk             /dev/sda7;\n"
        "        meta-disk        internal;\n"
        "        address          ipv4 10.0.0.2:7789;\n"
        "    }\n"
        "    on bob {\n"
        "        device           /dev/drbd0 minor 0;\n"
        "        disk             /dev/sda7;\n"
        "        meta-disk        internal;\n"
        "        address          ipv4 10.0.0.3:7789;\n"
        "    }\n"
        "    disk {\n"
        "        md-flushes       no;\n"
        "    }\n"
        "}\n"
    )


def test_one_resource_can_be_dumped_alone() -> None:
    config = load_text(resource() + second())
    assert "resource r1 {" in config.dump("r1") and "r0" not in config.dump("r1")


def test_what_cannot_be_run_says_so_in_its_dump() -> None:
    text = load_text("resource r0 { }").dump()
    assert "# not usable: expected exactly two hosts" in text
