"""The NBD server's certificates: checked before a daemon starts, whichever front end it has.

The files are named as nbdkit, qemu and libnbd name them. Nothing here knows the NBD protocol.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from replicator.config.model import ReplicatorOptions
from replicator.errors import ConfigError

CA_CERTIFICATE = "ca-cert.pem"
SERVER_CERTIFICATE = "server-cert.pem"
SERVER_KEY = "server-key.pem"
REVOKED = "ca-crl.pem"
"""The only file that may be missing."""


def server_context(resource: str, options: ReplicatorOptions) -> ssl.SSLContext | None:
    """What a server does TLS with; None if `tls-certificates` is not set. Raises ConfigError naming
    the file that is missing or cannot be used."""
    if not options.tls_certificates:
        return None
    directory = Path(options.tls_certificates)
    place = f"{resource}: tls-certificates {directory}"
    for name in (CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY):
        _check_readable(place, directory / name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # An empty password: OpenSSL would ask for that of an encrypted key on the terminal.
    chain = directory / SERVER_CERTIFICATE, directory / SERVER_KEY
    try:
        context.load_cert_chain(*chain, password="")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"{place}: {SERVER_CERTIFICATE} and {SERVER_KEY} cannot be used: {_words(error)}",
            hint="Expected a certificate in PEM form and its private key without a password.",
        ) from None
    try:
        context.load_verify_locations(directory / CA_CERTIFICATE)
        if (directory / REVOKED).exists():
            context.load_verify_locations(directory / REVOKED)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{place}: {CA_CERTIFICATE} cannot be used: {_words(error)}") from None
    if options.tls_verify_peer:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def why_handshake_failed(error: OSError) -> str:
    """For the log."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: its certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS: {error.reason.lower().replace('_', ' ')}"
    return f"TLS: it left during the handshake ({error.strerror or error})"


def _check_readable(place: str, path: Path) -> None:
    try:
        with path.open("rb"):
            return
    except OSError as error:
        raise ConfigError(
            f"{place}: expected the file {path.name}: {error.strerror or error}",
            hint=f"The directory needs {CA_CERTIFICATE}, {SERVER_CERTIFICATE} and {SERVER_KEY}.",
        ) from None


def _words(error: OSError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error.strerror or "no PEM file")
