"""Certificates for tests, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_pair(place: Path, name: str = "", *, more: str = "DNS:relay.example.net,IP:127.0.0.1") -> None:
    """A certificate that signs itself, NAMEc.pem, and its key, NAMEk.pem. more: its subject alternative names."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(place / f"{name}k.pem"), "-out", str(place / f"{name}c.pem"), "-days", "30"),
            *("-subj", "/CN=relay", "-addext", f"subjectAltName={more}"),
        ],
        check=True,
        capture_output=True,
    )
