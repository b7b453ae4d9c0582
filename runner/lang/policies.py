"""Durations and retry policies as flow files write them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runner.plan import Jitter, RetryPolicy
from runner.source import MappingNode, Node, plain
from runner.times import parse_duration_s

DEFAULT_REPLY_S = 30.0
"""How long a caller waits for a reply unless its command says otherwise."""

UNDO = RetryPolicy(max_attempts=10)
"""How a compensation is retried unless it says otherwise: it should succeed in the end."""


def duration_s(node: Node | None) -> float | None:
    """A duration in seconds; None if none is given."""
    return None if node is None else parse_duration_s(str(plain(node)))


def retry_policy(defaults: RetryPolicy, node: Node | None) -> RetryPolicy:
    """The policy written at `node`, which overrides `defaults` key by key."""
    if not isinstance(node, MappingNode):
        return defaults
    changes: dict[str, Any] = {}
    for key, _, value in node.items():
        given: Any = plain(value)
        match key:
            case "max_attempts":
                changes["max_attempts"] = None if given == "unlimited" else given
            case "delay" | "max_delay" | "max_duration":
                changes[f"{key}_s"] = duration_s(value)
            case "jitter":
                changes["jitter"] = given if isinstance(given, str) else _jitter(value)
            case "on":
                changes["on"] = tuple(_list(given))
            case "except":
                changes["except_"] = tuple(_list(given))
            case _:
                changes[key] = given
    return replace(defaults, **changes)


def send_policy(node: Node | None, defaults: RetryPolicy) -> RetryPolicy:
    """A command's policy: once, unless the step itself has one; that overrides the handler's key by key."""
    return RetryPolicy(max_attempts=1) if node is None else retry_policy(defaults, node)


def undo_policy(node: Node | None) -> RetryPolicy:
    """A compensation's policy: its own keys over ten attempts."""
    return retry_policy(UNDO, node)


def _jitter(node: Node) -> Jitter:
    assert isinstance(node, MappingNode)
    return Jitter(low_s=duration_s(node.get("from")) or 0.0, high_s=duration_s(node.get("to")) or 0.0)


def _list(value: Any) -> list[str]:
    return list(value) if isinstance(value, list) else [value]
