"""FR111, FR211: an endpoint has a method and a path, and has them alone. FR201, FR206: what is behind it exists."""

from __future__ import annotations

import re
from collections.abc import Iterator

from runner.diagnostics import Diagnostic, Related, did_you_mean, respelt
from runner.lang.declare import IngressDecl
from runner.lang.policies import duration_s
from runner.lang.project import Declarations
from runner.source import MappingNode, ScalarNode, Span

OWN_PATHS = ("/livez", "/readyz", "/status")
_METHODS = ("POST", "PUT", "PATCH", "DELETE")
_PART = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]+|\{[a-z][a-z0-9_]*\})"
_HTTP = re.compile(rf"(?:{'|'.join(_METHODS)}) +/(?:{_PART}(?:/{_PART})*)?")
_FORM = "a method (POST, PUT, PATCH or DELETE), a space and a path; for example POST /orders/{order_id}"


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Endpoints that no request can reach, or that lead nowhere."""
    first: dict[tuple[str, str], Span] = {}
    for flow in project.flows:
        for endpoint in flow.ingress:
            yield from _http(endpoint)
            yield from _twice(endpoint, first)
            yield from _period(endpoint)
            if project.complete:
                yield from _target(project, endpoint)
            if endpoint.command is None and (timeout := endpoint.body.key("timeout")) is not None:
                help = "an event has no reply to be waited for"
                yield Diagnostic(code="FR101", summary='unknown key "timeout"', span=timeout.span, help=help)


def _http(endpoint: IngressDecl) -> Iterator[Diagnostic]:
    node = endpoint.http
    if node is None or not isinstance(node.value, str):
        return
    if not _HTTP.fullmatch(node.value):
        help = "what changes nothing is no event and no command: POST" if endpoint.method == "GET" else _FORM
        yield Diagnostic(code="FR111", summary=f'"{node.value}" is no METHOD /path', span=node.span, help=help)
        return
    names = endpoint.parameters
    for name in sorted({name for name in names if names.count(name) > 1}):
        summary = f"{{{name}}} stands twice in the path"
        yield Diagnostic(code="FR111", summary=summary, span=node.span, help="give each a name of its own")


def _twice(endpoint: IngressDecl, first: dict[tuple[str, str], Span]) -> Iterator[Diagnostic]:
    node = endpoint.http
    if node is None or not _HTTP.fullmatch(str(node.value)):
        return
    if endpoint.path in OWN_PATHS or endpoint.path.startswith("/projections/"):
        summary = f"{endpoint.path} is flowrun's own: it tells how a process fares, or a read model"
        yield Diagnostic(code="FR211", summary=summary, span=node.span, help="choose another path")
        return
    key = (endpoint.method, endpoint.shape)
    if key in first:
        related = (Related("the first one is here", first[key]),)
        summary = f"a second endpoint for {endpoint.method} {endpoint.path}"
        yield Diagnostic(code="FR211", summary=summary, span=node.span, related=related)
    first.setdefault(key, node.span)


def _period(endpoint: IngressDecl) -> Iterator[Diagnostic]:
    limit = endpoint.body.get("rate_limit")
    period = limit.get("period") if isinstance(limit, MappingNode) else None
    if isinstance(period, ScalarNode) and duration_s(period) == 0:
        yield Diagnostic(code="FR107", summary="a period of nothing has no limit", span=period.span)


def _target(project: Declarations, endpoint: IngressDecl) -> Iterator[Diagnostic]:
    for code, kind, node, known in (
        ("FR201", "event", endpoint.event, project.events),
        ("FR206", "command", endpoint.command, project.commands),
    ):
        if node is not None and isinstance(node.value, str) and node.value not in known:
            help = did_you_mean(node.value, known) or f"declare it under {kind}s:"
            fix = respelt(node, node.value, known)
            yield Diagnostic(code=code, summary=f'no {kind} named "{node.value}"', span=node.span, help=help, fix=fix)
