"""RabbitMQ, over aio-pika."""

from runner.transports.rabbitmq.transport import RabbitTransport

__all__ = ["RabbitTransport"]
