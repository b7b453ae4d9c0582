"""`make demo`: the shop on the embedded broker, in a folder of its own that is gone afterwards.

Nothing here but the commands that a user types, the requests that customers send, and, where a third party pays, what
stands for its answers.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FLOWRUN = Path(sys.executable).parent / "flowrun"
SILENCE = timedelta(seconds=4)
VOUCHERS = 2

Payment = dict[str, str | int]


def main() -> int:
    """Run the demo's commands; its exit code is the first one that is not 0."""
    with tempfile.TemporaryDirectory(prefix="flowrun-demo-") as folder:
        environment = {
            **os.environ,
            "FLOWRUN_BROKER": "embedded:",
            "FLOWRUN_STORE": f"sqlite:{folder}/shop.db",
            "SHOP_DATA": folder,
        }
        for command, payments in commands():
            print("\n$ flowrun " + " ".join(f"'{word}'" if "{" in word else word for word in command), flush=True)
            if payments:
                code = serve([FLOWRUN, *command], payments, cwd=ROOT, env=environment)
            else:
                code = subprocess.call([FLOWRUN, *command], cwd=ROOT, env=environment)
            if code != 0:
                return code
    return 0


def commands() -> Iterator[tuple[list[str], Sequence[Payment]]]:
    """In their order, with what customers pay meanwhile; between them the demo says what comes."""
    yield ["validate"], ()

    say("Five orders: two go through at once, one is paid at the third try, one finds too little stock, one no money.")
    yield ["emit", "order.requested", "--file", "flows/demo-orders.jsonl"], ()
    yield ["start", "--until-idle"], ()

    say("Three more orders, which their customers pay themselves, through the gateway.")
    yield ["emit", "order.requested", "--file", "flows/demo-gateway-orders.jsonl"], ()
    yield ["start", "--until-idle"], ()

    say("Alice pays from her account. Bob has no money: twice he names a third party, who is to vouch for him.")
    alice: Payment = {"order_id": "A-1006", "customer": "alice", "amount": 1999, "method": "account"}
    bob: Payment = {"order_id": "A-1007", "customer": "bob", "amount": 3998, "method": "voucher"}
    again = {**bob, "order_id": "A-1008", "amount": 5997, "pay_by": (datetime.now(UTC) + SILENCE).isoformat()}
    payments = [{"payment_id": f"p-{n}", **payment} for n, payment in enumerate((alice, bob, again), 1)]
    yield ["start", "--http", "127.0.0.1:0"], payments

    say("The third party vouches for the first. Of the second it says nothing, until it is too late.")
    yield vouch(payment_id="p-2", voucher_id="v-2", amount=3998), ()
    yield ["start", "--until-idle"], ()

    say("Then it vouches for the second after all: the voucher is returned. Order A-1008 waits for another payment.")
    yield vouch(payment_id="p-3", voucher_id="v-3", amount=5997), ()
    yield ["start", "--until-idle"], ()
    yield ["runs", "list", "--limit", "100"], ()

    say("The story of one order: each event, by what, and why.")
    yield ["events", "chain", "order/A-1007"], ()

    say("What the events of all that say of the orders: a read model, folded from the log.")
    yield ["query", "order_status"], ()


def serve(command: list[Any], payments: Sequence[Payment], **options: Any) -> int:
    """Run `start`, which goes on for ever, and pay; stop it once each payment has begun to wait, or has waited."""
    awaited = 0
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options) as process:
        assert process.stderr is not None
        for line in process.stderr:
            print(line, end="", flush=True)
            if "HTTP on " in line:
                url = line.partition("HTTP on ")[2].split(": ")[0]
                for payment in payments:
                    pay(url, payment)
            awaited += "voucher  waits until" in line or "fails  no_voucher" in line
            if awaited == VOUCHERS:
                awaited = 0
                process.send_signal(signal.SIGTERM)
    return process.returncode


def say(text: str) -> None:
    """Tell what comes."""
    print(f"\n# {text}", flush=True)


def pay(url: str, payment: Payment) -> None:
    """A customer's payment order, as the gateway gets it."""
    body = json.dumps(payment)
    print(f"\n$ curl {url}/payments --json '{body}'", flush=True)
    request = urllib.request.Request(f"{url}/payments", body.encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request) as response:  # noqa: S310 the address is our own
        print(response.status, response.read().decode(), flush=True)


def vouch(**voucher: str | int) -> list[str]:
    """What the third party publishes on a real broker."""
    return ["emit", "voucher.issued", "--data", json.dumps(voucher)]


if __name__ == "__main__":
    sys.exit(main())
