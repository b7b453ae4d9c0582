"""A project as an AsyncAPI 3.0 document: what it sends and receives, for programs that are none of flowrun's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from runner.lang.bundle import Bundle, is_newer
from runner.lang.declare import FlowDecl
from runner.plan import Command, Exchange, Plan, Send
from runner.source import Document

BINDING = "0.3.0"
NEWER = "application/schema+json;version=2020-12"
_TEXT = {"type": "string"}
_HEADERS = {
    "type": "object",
    "required": ["ce-specversion", "ce-id", "ce-source", "ce-type"],
    "properties": {
        "ce-specversion": {"const": "1.0"},
        "ce-id": {**_TEXT, "description": "Duplicates are told by it and ce-source."},
        "ce-source": {**_TEXT, "description": "Who published it: /flowrun/<project>/<flow>."},
        "ce-type": {**_TEXT, "description": "The event's or the command's name."},
        "ce-time": {**_TEXT, "format": "date-time"},
        "ce-subject": {**_TEXT, "description": "The object that it is about."},
        "ce-correlationid": _TEXT,
        "ce-causationid": _TEXT,
        "traceparent": _TEXT,
        "tracestate": _TEXT,
    },
}
_FAILURE = {
    "name": "failure",
    "title": "A failed reply",
    "contentType": "application/json",
    "correlationId": {"$ref": "#/components/correlationIds/command"},
    "headers": {
        "type": "object",
        "required": ["flowrun-status"],
        "properties": {"flowrun-status": {"const": "failed"}},
    },
    "payload": {
        "type": "object",
        "required": ["type", "message", "retryable", "details"],
        "properties": {
            "type": {**_TEXT, "description": "For example timeout, invalid_input, card_declined."},
            "message": _TEXT,
            "retryable": {"type": "boolean"},
            "details": {"type": "object"},
        },
    },
}


def document(plan: Plan, flows: Iterable[FlowDecl], documents: Mapping[str, Document]) -> dict[str, Any]:
    """The document. Its operations are the project's: `send` is what a flow publishes, `receive` what a queue takes."""
    return _Export(plan, tuple(flows), documents).document()


class _Export:
    def __init__(self, plan: Plan, flows: tuple[FlowDecl, ...], documents: Mapping[str, Document]) -> None:
        self._plan = plan
        self._events = {event.name: event for flow in flows for event in flow.events}
        self._commands = {command.name: command for flow in flows for command in flow.commands}
        written = [event.schema for event in self._events.values()]
        written += [command.body.get(key) for command in self._commands.values() for key in ("schema", "reply")]
        files = [each.root for name, each in documents.items() if name.endswith(".json")]
        self._newer = is_newer([*written, *files])
        self._bundle = Bundle(documents, "#/components/schemas", "/schema" if self._newer else "")
        self._exchanges = {exchange.name: exchange for exchange in plan.topology.exchanges}

    def document(self) -> dict[str, Any]:
        plan = self._plan
        messages = dict(self._messages())
        shared = {name: self._format(schema) for name, schema in self._bundle.shared.items()}
        digest = hashlib.sha256("".join(sorted(plan.sources)).encode()).hexdigest()
        return {
            "asyncapi": "3.0.0",
            "info": {
                "title": plan.project,
                "version": digest[:12],
                "description": f"The events and commands of the flowrun project {plan.project}. The version changes "
                "whenever a flow or a schema does.",
            },
            "defaultContentType": "application/json",
            "channels": {**dict(self._event_channels()), **dict(self._command_channels())},
            "operations": {**dict(self._event_operations()), **dict(self._command_operations())},
            "components": {
                "messages": messages,
                **({"schemas": shared} if shared else {}),
                "messageTraits": {"cloudevent": {"headers": _HEADERS}},
                "correlationIds": {
                    "command": {
                        "description": "The AMQP property correlation_id: the command's own id.",
                        "location": "$message.header#/correlation_id",
                    }
                },
            },
        }

    # --- messages

    def _messages(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, event in self._events.items():
            yield name, self._message(name, self._payload(name, event.schema, event.document))
        for name, command in self._commands.items():
            asked = {"correlationId": {"$ref": "#/components/correlationIds/command"}}
            request = self._payload(name, command.body.get("schema"), command.document)
            yield name, {**self._message(name, request), **asked}
            reply = self._payload(f"{name}.reply", command.body.get("reply"), command.document)
            answer = {"name": f"{name}.reply", "contentType": "application/json", "payload": reply, **asked}
            yield f"{name}.reply", {**answer, "bindings": _typed(f"{name}.reply")}
        if self._commands:
            yield "failure", _FAILURE

    def _message(self, name: str, payload: Any) -> dict[str, Any]:
        return {
            "name": name,
            "contentType": "application/json",
            "traits": [{"$ref": "#/components/messageTraits/cloudevent"}],
            "payload": payload,
            "bindings": _typed(name),
        }

    def _payload(self, message: str, node: Any, document: Document) -> Any:
        at = f"#/components/messages/{message}/payload" + ("/schema" if self._newer else "")
        return self._format(self._bundle.schema(node, document, at))

    def _format(self, schema: Any) -> Any:
        """AsyncAPI's own format is a superset of draft-07; what says more must say so."""
        return {"schemaFormat": NEWER, "schema": schema} if self._newer else schema

    # --- channels

    def _event_channels(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, event in self._plan.events.items():
            channel = self._channel(name, f"{self._plan.project}.events")
            yield name, {**channel, "x-flowrun-keys": list(event.keys)} if event.keys else channel

    def _command_channels(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in self._plan.commands:
            yield name, self._channel(name, f"{self._plan.project}.commands")
            yield (
                f"{name}.reply",
                {
                    "address": None,
                    "description": "The queue that reply_to names, over the default exchange.",
                    "messages": {
                        f"{name}.reply": {"$ref": f"#/components/messages/{name}.reply"},
                        "failure": {"$ref": "#/components/messages/failure"},
                    },
                },
            )

    def _channel(self, name: str, exchange: str) -> dict[str, Any]:
        return {
            "address": name,
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
            "bindings": {
                "amqp": {
                    "is": "routingKey",
                    "exchange": _exchange(self._exchanges[exchange]),
                    "bindingVersion": BINDING,
                }
            },
        }

    # --- operations

    def _event_operations(self) -> Iterator[tuple[str, dict[str, Any]]]:
        plan = self._plan
        emitted = plan.emitted
        for event in plan.events.values():
            if event.name in emitted:
                yield f"send.{event.name}", _send(event.name, mandatory=event.routed)
        for program in plan.programs.values():
            for name in sorted({name for route in program.routes for name in route.events}):
                yield f"{program.name}.receives.{name}", _receive(name, program.queue)
        for binding in plan.topology.bindings:
            if binding.queue == plan.journal and binding.pattern in plan.events:
                yield f"journal.receives.{binding.pattern}", _receive(binding.pattern, binding.queue)

    def _command_operations(self) -> Iterator[tuple[str, dict[str, Any]]]:
        sent = _sent(self._plan)
        for command in self._plan.commands.values():
            if command.name in sent:
                yield f"send.{command.name}", {**_send(command.name, mandatory=True), "reply": _reply(command)}
            if command.handler is not None:
                queue = self._plan.programs[command.handler].queue
                operation = {**_receive(command.name, queue), "reply": _reply(command)}
                yield f"{command.handler}.receives.{command.name}", operation


def _sent(plan: Plan) -> set[str]:
    """The commands that something in the project sends."""
    steps = {s.command for program in plan.programs.values() for s in program.every.values() if isinstance(s, Send)}
    return steps | {endpoint.command for endpoint in plan.ingress if endpoint.command is not None}


def _exchange(exchange: Exchange) -> dict[str, Any]:
    return {"name": exchange.name, "type": exchange.type, "durable": True, "autoDelete": False}


def _typed(name: str) -> dict[str, Any]:
    """The AMQP property `type`."""
    return {"amqp": {"messageType": name, "bindingVersion": BINDING}}


def _send(name: str, *, mandatory: bool) -> dict[str, Any]:
    amqp = {"deliveryMode": 2, "mandatory": mandatory, "bindingVersion": BINDING}
    return {**_operation("send", name), "bindings": {"amqp": amqp}}


def _receive(name: str, queue: str) -> dict[str, Any]:
    amqp = {"ack": True, "bindingVersion": BINDING}
    return {**_operation("receive", name), "bindings": {"amqp": amqp}, "x-flowrun-queue": queue}


def _operation(action: str, name: str) -> dict[str, Any]:
    channel = {"$ref": f"#/channels/{name}"}
    return {"action": action, "channel": channel, "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}]}


def _reply(command: Command) -> dict[str, Any]:
    channel = f"#/channels/{command.name}.reply"
    return {
        "address": {"description": "The AMQP property reply_to.", "location": "$message.header#/reply_to"},
        "channel": {"$ref": channel},
        "messages": [{"$ref": f"{channel}/messages/{command.name}.reply"}, {"$ref": f"{channel}/messages/failure"}],
    }
