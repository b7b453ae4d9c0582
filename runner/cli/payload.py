"""Payloads as command lines give them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from runner.errors import FlowrunError, NotFoundError
from runner.message import decode_json


class MisfitError(FlowrunError):
    """A payload that its schema refuses, or that is no JSON."""

    exit_code = 1


def read_payload(where: str, data: str) -> Any:
    """The JSON value of `--data`: JSON, @FILE, or - for standard input. Raises MisfitError, NotFoundError."""
    return parse_payload(where, _read(data))


def parse_payload(where: str, body: bytes) -> Any:
    """The JSON value of a body that came from `where`. Raises MisfitError."""
    try:
        return decode_json(body)
    except ValueError as error:
        raise MisfitError(f"{where} is not JSON: {error}") from None


def _read(data: str) -> bytes:
    if data == "-":
        return sys.stdin.buffer.read()
    if not data.startswith("@"):
        return data.encode()
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise NotFoundError(f"{data[1:]} cannot be read: {error.strerror}") from None
