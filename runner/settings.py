"""`flowrun.yaml`, variables and flags → Settings. A flag wins over a variable, that over the file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runner.diagnostics import Diagnostic, Severity
from runner.errors import SettingsError
from runner.lang import schema
from runner.lang.load import Sources, load
from runner.source import Document, plain
from runner.times import parse_duration_s

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

FILE = "flowrun.yaml"
_VARIABLES = ("FLOWRUN_BROKER", "FLOWRUN_STORE")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::([-?])([^}]*))?\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where a project is and what it runs on. `brokers` are URLs in the order of preference."""

    root: Path
    project: str
    brokers: tuple[str, ...]
    store: str
    topology: Literal["declare", "verify", "external"] = "declare"
    listen: str | None = None
    """Where HTTP is served, `host:port`; None: nowhere."""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    retention_s: float | None = None
    """Events that are older are taken out of the log; None: none are."""
    archive: Path | None = None
    """The folder that they are kept in then, below `root` unless it is absolute."""


def read_file(root: Path) -> tuple[Document | None, list[Diagnostic]]:
    """`flowrun.yaml`, if there is one, and what is wrong with it."""
    if not (root / FILE).exists():
        return None, []
    document, faults = load(Sources(root), FILE)
    return document, [*faults, *schema.check(document, "project")]


def load_settings(
    root: Path,
    *,
    broker: str | None = None,
    store: str | None = None,
    http: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings of the project at `root`. Raises SettingsError, naming every variable that is missing."""
    if not root.is_dir():
        raise SettingsError(f"{root} is not a folder", hint="name the project's folder with -C")
    document, faults = read_file(root)
    errors = [fault for fault in faults if fault.severity is Severity.ERROR]
    if errors:
        first = errors[0]
        raise SettingsError(f"{first.span}: {first.summary}", hint=first.help or "see flowrun validate")
    missing: list[str] = []
    given: Any = _resolve(plain(document.root) if document is not None else {}, environ, missing) or {}
    if missing:
        raise SettingsError(f"{FILE} needs {', '.join(missing)}", hint="set the variables, or give ${NAME:-default}")
    flags = {"--broker": broker, "--store": store, "--http": http}
    for name, value in (*flags.items(), *((n, environ.get(n)) for n in _VARIABLES)):
        if value is not None and not value.strip():
            what = "host:port" if name == "--http" else "a URL"
            raise SettingsError(f"{name} is empty", hint=f"leave it out, or give {what}")
    project = given.get("project") or default_project(root)
    served: dict[str, Any] = given.get("http") or {}
    events: dict[str, Any] = given.get("events") or {}
    brokers = broker or environ.get("FLOWRUN_BROKER") or given.get("broker") or "embedded:"
    return Settings(
        root=root,
        project=project,
        brokers=(brokers,) if isinstance(brokers, str) else tuple(brokers),
        store=store or environ.get("FLOWRUN_STORE") or given.get("store") or f"sqlite:.flowrun/{project}.db",
        topology=given.get("topology") or "declare",
        listen=http or served.get("listen"),
        trusted_proxies=tuple(_network(text) for text in served.get("trusted_proxies") or ()),
        retention_s=_retention_s(events.get("retention")),
        archive=root / events["archive"] if events.get("archive") else None,
    )


def default_project(root: Path) -> str:
    """The folder's name, made to fit: `[a-z][a-z0-9_-]*`."""
    name = re.sub(r"[^a-z0-9_-]+", "-", root.resolve().name.lower()).strip("-_")
    return name if re.match(r"[a-z]", name) else f"p-{name}".rstrip("-")


def project_name(root: Path) -> str:
    """The project's name as far as it is known without the environment: for `validate` and `plan`."""
    document, _ = read_file(root)
    given = plain(document.root) if document is not None else None
    name = given.get("project") if isinstance(given, dict) else None
    return name if isinstance(name, str) and not _VARIABLE.search(name) else default_project(root)


def _retention_s(text: object) -> float | None:
    if text is None:
        return None
    seconds = parse_duration_s(str(text))
    if not seconds:
        raise SettingsError(f'{FILE}: events.retention: "{text}" is no time to keep events', hint="for example 90d")
    return seconds


def _network(text: str) -> IPv4Network | IPv6Network:
    from ipaddress import ip_network

    try:
        return ip_network(text.strip(), strict=False)
    except ValueError:
        raise SettingsError(
            f'{FILE}: http.trusted_proxies: "{text}" is no address and no network', hint="for example 10.0.0.0/8"
        ) from None


def _resolve(value: Any, environ: Mapping[str, str], missing: list[str]) -> Any:
    """`${NAME}`, `${NAME:-default}` and `${NAME:?message}` in the texts of a parsed value."""
    if isinstance(value, dict):
        return {key: _resolve(item, environ, missing) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, environ, missing) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        found = environ.get(name)
        if found is not None and (found or operator is None):
            return found
        if operator == "-":
            return str(rest)
        missing.append(f"{name} ({rest})" if operator == "?" and rest else name)
        return ""

    return _VARIABLE.sub(replace, value)


def mask_url(text: str) -> str:
    """A URL without its password: neither before the last `@`, whatever it holds, nor in the query."""
    text = re.sub(r"//([^:/@]*):?.*@", lambda match: f"//{match[1]}:***@", text)
    return re.sub(r"((?:pass|secret|token)\w*)=[^&\s]*", r"\1=***", text, flags=re.IGNORECASE)
