"""NBD by TLS, with both front ends and real clients: libnbd, nbdinfo, qemu-img.

What must hold: data arrives; who may not be served is refused for a reason that is told; local
clients go on without TLS.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbd
import pytest

from tests.integration.pair import MIB, Pair
from tests.tools.certificates import Authority
from tests.tools.ports import FreePorts

pytestmark = [pytest.mark.needs("nbdkit", "openssl"), pytest.mark.timeout(120)]

CONFIG_ERROR = 10


@dataclass
class Stage:
    """Certificates: of the server, of clients with and without one, and of a stranger's authority."""

    server: Path
    client: Path
    without: Path
    stranger: Path

    def __init__(self, root: Path) -> None:
        ours, other = Authority(root / "ours"), Authority(root / "other")
        self.server = ours.issue("server", root / "server")
        self.client = ours.issue("client", root / "client")
        self.without = ours.trust(root / "without")
        self.stranger = other.issue("client", root / "stranger")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("tls"))


@dataclass
class Served:
    pair: Pair
    port: int
    frontend: str

    def connect(self, certificates: Path | None, **options: bool) -> nbd.NBD:
        """By TCP; with TLS if there are certificates. Raises nbd.Error."""
        client = nbd.NBD()
        if certificates is not None:
            client.set_tls(nbd.TLS_REQUIRE)
            client.set_tls_certificates(str(certificates))
        client.connect_uri(f"nbd{'s' if certificates else ''}://127.0.0.1:{self.port}/0")
        return client


def serve(frontend: str, certificates: Path, ports: FreePorts, more: str) -> tuple[Pair, int]:
    port = ports.take()
    text = f"listen 127.0.0.1:{port}; tls-certificates {certificates}; {more}"
    return Pair(frontend=frontend, sections={"replicator": text}), port


@pytest.fixture(scope="module", params=["nbdkit", "native"])
def served(request: pytest.FixtureRequest, certificates: Stage) -> Iterator[Served]:
    """TLS and a certificate of the client are required by TCP; alice is Primary, alone."""
    with FreePorts() as ports:
        more = "tls-required; tls-verify-peer;"
        pair, port = serve(request.param, certificates.server, ports, more)
        with pair:
            start_alone(pair)
            yield Served(pair, port, request.param)


def start_alone(pair: Pair) -> None:
    pair.alice.create_md()
    pair.alice.up()
    pair.alice.primary(force=True)


def test_data_goes_in_and_out_by_tls_in_pieces_of_all_sizes(
    served: Served, certificates: Stage
) -> None:
    client = served.connect(certificates.client)
    assert client.get_tls_negotiated()
    data = os.urandom(9 * MIB)
    at = 0
    for length in (512, 4096, 66048, MIB, 5 * MIB):
        client.pwrite(data[at : at + length], at)
        at += length
    client.flush()
    assert bytes(client.pread(at, 0)) == data[:at]
    client.shutdown()
    assert served.pair.alice.read(0, at) == data[:at], "a local client sees the same, without TLS"


def test_many_requests_in_flight_by_tls_all_get_their_own_data(
    served: Served, certificates: Stage
) -> None:
    client = served.connect(certificates.client)
    blocks = [os.urandom(4096) for _ in range(200)]
    cookies = {
        client.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(block)), number * 4096)
        for number, block in enumerate(blocks)
    }
    while cookies:
        client.poll(-1)
        cookies -= {cookie for cookie in cookies if client.aio_command_completed(cookie)}
    assert bytes(client.pread(200 * 4096, 0)) == b"".join(blocks)
    client.shutdown()


def test_a_client_in_clear_is_refused_by_tcp(served: Served) -> None:
    with pytest.raises(nbd.Error) as refused:
        served.connect(None)
    if served.frontend == "native":
        assert "TLS" in str(refused.value), "the client is told why"
    else:
        assert "this server requires TLS" in served.pair.alice.log()


def test_a_client_in_clear_does_not_even_see_a_list(served: Served) -> None:
    listing = ["nbdinfo", "--list", "--json", f"nbd://127.0.0.1:{served.port}"]
    done = subprocess.run(listing, capture_output=True, text=True, timeout=30)
    assert "export-name" not in done.stdout


@pytest.mark.parametrize("who", ["without", "stranger"])
def test_a_client_whose_certificate_is_missing_or_a_strangers_is_refused(
    served: Served, certificates: Stage, who: str, tmp_path: Path
) -> None:
    directory = tmp_path / "certificates"
    directory.mkdir()
    for source in (getattr(certificates, who), certificates.without):
        for path in source.iterdir():
            (directory / path.name).write_bytes(path.read_bytes())
    before = len(served.pair.alice.log())
    with pytest.raises(nbd.Error):
        client = served.connect(directory)
        client.pread(512, 0)
    # The client may hear of the end before the server has written why.
    end = time.monotonic() + 10
    while "certificate" not in (log := served.pair.alice.log()[before:].lower()):
        assert time.monotonic() < end, log[-500:]
        time.sleep(0.05)
    assert "tls" in log


def test_a_server_that_is_not_the_authoritys_is_refused_by_the_client(
    served: Served, certificates: Stage
) -> None:
    with pytest.raises(nbd.Error, match=r"(?i)certificate"):
        served.connect(certificates.stranger)
    assert served.connect(certificates.client).get_size() > 0, "others are still served"


@pytest.mark.needs("nbdinfo")
def test_the_printed_uri_says_tls_and_nbdinfo_can_use_it(
    served: Served, certificates: Stage
) -> None:
    uri = served.pair.alice.status()["nbd_uris"][1]
    assert uri == f"nbds://127.0.0.1:{served.port}/0"
    done = subprocess.run(
        ["nbdinfo", f"{uri}?tls-certificates={certificates.client}"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert "with TLS" in done.stdout


@pytest.mark.needs("qemu-img")
def test_qemu_img_copies_in_by_tls(served: Served, certificates: Stage, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(4 * MIB))
    credentials = f"tls-creds-x509,id=tls0,dir={certificates.client},endpoint=client"
    target = f"driver=nbd,host=127.0.0.1,port={served.port},export=0,tls-creds=tls0"
    words = ["qemu-img", "convert", "-n", "--object", credentials, "-f", "raw"]
    done = subprocess.run(
        [*words, image, "--target-image-opts", target], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert served.pair.alice.read(0, 4 * MIB) == image.read_bytes()


@pytest.mark.parametrize("frontend", ["nbdkit", "native"])
def test_tls_that_is_only_offered_leaves_the_choice_to_the_client(
    frontend: str, certificates: Stage
) -> None:
    with FreePorts() as ports:
        pair, port = serve(frontend, certificates.server, ports, "")
        with pair:
            start_alone(pair)
            served = Served(pair, port, frontend)
            secure, plain = served.connect(certificates.without), served.connect(None)
            secure.pwrite(b"x" * 512, 0)
            assert bytes(plain.pread(512, 0)) == b"x" * 512
            assert secure.get_tls_negotiated() and not plain.get_tls_negotiated()
            assert pair.alice.status()["nbd_uris"][1].startswith("nbd://")
            for client in (secure, plain):
                client.shutdown()


@pytest.mark.parametrize("frontend", ["nbdkit", "native"])
def test_up_says_which_file_is_missing_or_wrong(
    frontend: str, certificates: Stage, tmp_path: Path
) -> None:
    with FreePorts() as ports:
        pair, _ = serve(frontend, tmp_path, ports, "")
        with pair:
            pair.alice.create_md()
            for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
                refused = pair.alice.cmd("up", "r0", check=False)
                assert refused.returncode == CONFIG_ERROR
                assert f"expected the file {name}" in refused.stderr
                (tmp_path / name).write_bytes((certificates.server / name).read_bytes())
            other = certificates.stranger / "client-key.pem"
            (tmp_path / "server-key.pem").write_bytes(other.read_bytes())
            refused = pair.alice.cmd("up", "r0", check=False)
            assert refused.returncode == CONFIG_ERROR
            assert "key values mismatch" in refused.stderr
            assert not pair.alice.running()
