"""The third party of the payment system: a program of its own on RabbitMQ, in plain pika, that vouches for payments.

`python tests/channel.py URL --mode prompt` takes `voucher.requested` and `voucher.returned` from a durable queue of its
own, publishes `voucher.issued` as plain JSON, and prints a line for each: `asked p-1`, `issued v-p-1`, `returned v-p-1
void`. What it was asked and has not answered stays in its queue: killed and started anew, it is asked again, and
answers under the same ids.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import pika

MODES = {
    "prompt": "answers at once",
    "slow": "answers after --delay seconds",
    "silent": "never answers",
    "twice": "answers at once, with two vouchers",
    "late": "answers once the payment has failed",
}


class ThirdParty:
    """Vouches for payments, in the way that `mode` says."""

    def __init__(self, url: str, project: str, mode: str, delay_s: float) -> None:
        self._mode = mode
        self._delay_s = delay_s
        self._exchange = f"{project}.events"
        self._asked: dict[str, int] = {}
        """The amounts of the payments that it has not answered."""
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()
        self._channel.queue_declare("third-party", durable=True)
        for event in ("voucher.requested", "voucher.returned", "payment.failed"):
            self._channel.queue_bind("third-party", self._exchange, event)
        self._channel.basic_consume("third-party", self._take)

    def run(self) -> None:
        print("ready", flush=True)
        self._channel.start_consuming()

    def _take(self, _: Any, method: Any, properties: Any, body: bytes) -> None:
        event = json.loads(body)
        if method.routing_key == "voucher.returned":
            print("returned", event["voucher_id"], event["reason"], flush=True)
        elif method.routing_key == "voucher.requested":
            print("asked", event["payment_id"], flush=True)
            if self._mode == "slow":  # acknowledged once it is answered
                self._connection.call_later(self._delay_s, lambda: self._answer(event, method.delivery_tag))
                return
            if self._mode == "late":
                self._asked[event["payment_id"]] = event["amount"]
            if self._mode in ("prompt", "twice"):
                self._issue(event["payment_id"], event["amount"])
            if self._mode == "twice":
                self._issue(event["payment_id"], event["amount"], "-again")
        elif event["payment_id"] in self._asked:
            self._issue(event["payment_id"], self._asked.pop(event["payment_id"]))
        self._channel.basic_ack(method.delivery_tag)

    def _answer(self, request: dict[str, Any], delivery_tag: int) -> None:
        self._issue(request["payment_id"], request["amount"])
        self._channel.basic_ack(delivery_tag)

    def _issue(self, payment_id: str, amount: int, mark: str = "") -> None:
        voucher_id = f"v-{payment_id}{mark}"
        voucher = {"payment_id": payment_id, "voucher_id": voucher_id, "amount": amount}
        properties = pika.BasicProperties(message_id=voucher_id, delivery_mode=2, content_type="application/json")
        self._channel.basic_publish(self._exchange, "voucher.issued", json.dumps(voucher).encode(), properties)
        print("issued", voucher_id, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="A third party that vouches for payments.")
    parser.add_argument("url", help="the broker, as amqp://…")
    parser.add_argument("--project", default="shop")
    parser.add_argument("--mode", choices=sorted(MODES), default="prompt", help=str(MODES))
    parser.add_argument("--delay", type=float, default=1.0, help="seconds, of the mode slow")
    options = parser.parse_args()
    ThirdParty(options.url, options.project, options.mode, options.delay).run()


if __name__ == "__main__":
    main()
