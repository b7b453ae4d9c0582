"""Messages on the wire ↔ ours."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic

from runner.message import Delivery, Properties


@dataclass(frozen=True, slots=True, eq=False)
class Receipt:
    """What a delivery is settled by. `unsettled` are the tags of its channel for which that is still to be done:
    RabbitMQ closes a channel on which one is settled twice."""

    channel: AbstractChannel
    tag: int
    unsettled: set[int]


def to_amqp(properties: Properties) -> Basic.Properties:
    """Our properties as AMQP's, persistent."""
    return Basic.Properties(
        message_id=properties.message_id,
        message_type=properties.type,
        app_id=properties.app_id,
        content_type=properties.content_type,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        timestamp=properties.timestamp,
        headers=dict(properties.headers),
        delivery_mode=2,
    )


def delivery_of(queue: str, channel: AbstractChannel, message: DeliveredMessage, unsettled: set[int]) -> Delivery:
    """A delivery of the library's as ours, with the receipt by which it is settled."""
    properties, frame = message.header.properties, message.delivery
    assert isinstance(frame, Basic.Deliver)
    return Delivery(
        queue=queue,
        exchange=frame.exchange or "",
        routing_key=frame.routing_key or "",
        body=message.body,
        properties=Properties(
            message_id=properties.message_id or None,
            type=properties.message_type or None,
            app_id=properties.app_id or None,
            content_type=properties.content_type or None,
            correlation_id=properties.correlation_id or None,
            reply_to=properties.reply_to or None,
            timestamp=_utc(properties.timestamp),
            headers=dict(properties.headers or {}),
        ),
        redelivered=bool(frame.redelivered),
        receipt=Receipt(channel, frame.delivery_tag or 0, unsettled),
    )


def _utc(moment: datetime | None) -> datetime | None:
    if moment is None or moment.tzinfo is not None:
        return moment
    return moment.replace(tzinfo=UTC)
