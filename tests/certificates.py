"""A throwaway certificate authority, made with the `openssl` program."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, slots=True)
class Certificate:
    """Two PEM files."""

    cert: Path
    key: Path


class Authority:
    """Signs certificates that are good for two days; its own is `ca`. All files are in `folder`."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._issued = Certificate(folder / "ca.pem", folder / "ca.key")
        usage = ("-addext", "keyUsage=critical,keyCertSign")
        self._openssl(
            "req", "-x509", *_KEY, *usage, "-days", "2", "-subj", "/CN=flowrun test authority",
            "-keyout", self._issued.key, "-out", self._issued.cert,
        )  # fmt: skip

    @property
    def ca(self) -> Path:
        return self._issued.cert

    def issue(self, name: str) -> Certificate:
        """For a server whose host name is `name`, or for a client of that name."""
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        issued = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        extensions.write_text(
            f"subjectAltName=DNS:{name}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid,issuer\n"
        )
        self._openssl("req", *_KEY, "-subj", f"/CN={name}", "-keyout", issued.key, "-out", request)
        self._openssl(
            "x509", "-req", "-in", request, "-CA", self._issued.cert, "-CAkey", self._issued.key, "-CAcreateserial",
            "-days", "2", "-extfile", extensions, "-out", issued.cert,
        )  # fmt: skip
        return issued

    def _openssl(self, *arguments: str | Path) -> None:
        done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
