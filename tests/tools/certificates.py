"""Certificates for tests of TLS, made by openssl, in directories laid out as nbdkit and qemu want."""

from __future__ import annotations

import subprocess
from pathlib import Path

DAYS = "2"
EXTENSIONS = {
    "server": "extendedKeyUsage=serverAuth\nsubjectAltName=IP:127.0.0.1,DNS:localhost",
    "client": "extendedKeyUsage=clientAuth",
}
USAGE = "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature,keyEncipherment\n"
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """A certificate authority in a directory of its own; names in certificates are its name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        authority = ("-x509", "-days", DAYS, "-subj", f"/CN={directory.name}")
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        _openssl("req", *authority, *usage, *KEY, "-keyout", self._key, "-out", self.certificate)

    @property
    def certificate(self) -> Path:
        return self.directory / "ca-cert.pem"

    @property
    def _key(self) -> Path:
        return self.directory / "ca-key.pem"

    def issue(self, role: str, directory: Path) -> Path:
        """Put ROLE-cert.pem, ROLE-key.pem and this authority's ca-cert.pem into the directory; role:
        server (for 127.0.0.1) or client. Returns the directory."""
        directory.mkdir(exist_ok=True)
        key, certificate = directory / f"{role}-key.pem", directory / f"{role}-cert.pem"
        request, extensions = self.directory / "request.pem", self.directory / "extensions"
        extensions.write_text(USAGE + EXTENSIONS[role])
        subject = ("-subj", f"/CN=a {role} of {self.directory.name}")
        _openssl("req", "-new", *subject, *KEY, "-keyout", key, "-out", request)
        signer = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial")
        options = (*signer, "-days", DAYS, "-extfile", extensions)
        _openssl("x509", "-req", "-in", request, *options, "-out", certificate)
        return self.trust(directory)

    def trust(self, directory: Path) -> Path:
        """Put ca-cert.pem into the directory, and nothing else. Returns the directory."""
        directory.mkdir(exist_ok=True)
        (directory / "ca-cert.pem").write_bytes(self.certificate.read_bytes())
        return directory


def _openssl(*words: str | Path) -> None:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise AssertionError(f"openssl {words}: {done.stderr}")
