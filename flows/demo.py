"""`make demo`: the shop on the embedded broker, in a folder of its own that is gone afterwards.

Nothing here but the commands that a user types, and, where a third party pays, those that stand for its answers.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FLOWRUN = Path(sys.executable).parent / "flowrun"
SILENCE = timedelta(seconds=4)
VOUCHERS = 2


def main() -> int:
    """Run the demo's commands; its exit code is the first one that is not 0."""
    with tempfile.TemporaryDirectory(prefix="flowrun-demo-") as folder:
        environment = {
            **os.environ,
            "FLOWRUN_BROKER": "embedded:",
            "FLOWRUN_STORE": f"sqlite:{folder}/shop.db",
            "SHOP_DATA": folder,
        }
        for command in commands():
            print("\n$ flowrun " + " ".join(f"'{word}'" if "{" in word else word for word in command), flush=True)
            run = run_until_vouchers_are_awaited if command == ["start"] else subprocess.call
            code = run([FLOWRUN, *command], cwd=ROOT, env=environment)
            if code != 0:
                return code
    return 0


def commands() -> Iterator[list[str]]:
    """In their order; between them the demo says what comes."""
    yield ["validate"]

    say("Five orders: two go through at once, one is paid at the third try, one finds too little stock, one no money.")
    yield ["emit", "order.requested", "--file", "flows/demo-orders.jsonl"]
    yield ["start", "--until-idle"]

    say("Three more orders, which their customers pay themselves, through the gateway.")
    yield ["emit", "order.requested", "--file", "flows/demo-gateway-orders.jsonl"]
    yield ["start", "--until-idle"]

    say("Alice pays from her account. Bob has no money: twice he names a third party, who is to vouch for him.")
    pay_by = datetime.now(UTC) + SILENCE
    yield pay(payment_id="p-1", order_id="A-1006", customer="alice", amount=1999, method="account")
    yield pay(payment_id="p-2", order_id="A-1007", customer="bob", amount=3998, method="voucher")
    yield pay(
        payment_id="p-3", order_id="A-1008", customer="bob", amount=5997, method="voucher", pay_by=pay_by.isoformat()
    )
    yield ["start"]

    say("The third party vouches for the first. Of the second it says nothing, until it is too late.")
    yield vouch(payment_id="p-2", voucher_id="v-2", amount=3998)
    yield ["start", "--until-idle"]

    say("Then it vouches for the second after all: the voucher is returned. Order A-1008 waits for another payment.")
    yield vouch(payment_id="p-3", voucher_id="v-3", amount=5997)
    yield ["start", "--until-idle"]
    yield ["runs", "list", "--limit", "100"]


def run_until_vouchers_are_awaited(command: list[Any], **options: Any) -> int:
    """Run `start`, which goes on for ever, until each payment has begun to wait, or has waited; then stop it."""
    awaited = 0
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options) as process:
        assert process.stderr is not None
        for line in process.stderr:
            print(line, end="", flush=True)
            awaited += "voucher  waits until" in line or "fails  no_voucher" in line
            if awaited == VOUCHERS:
                awaited = 0
                process.send_signal(signal.SIGTERM)
    return process.returncode


def say(text: str) -> None:
    """Tell what comes."""
    print(f"\n# {text}", flush=True)


def pay(**payment: str | int) -> list[str]:
    """A user's payment order, as the gateway gets it."""
    return ["emit", "payment.ordered", "--data", json.dumps(payment)]


def vouch(**voucher: str | int) -> list[str]:
    """What the third party publishes on a real broker."""
    return ["emit", "voucher.issued", "--data", json.dumps(voucher)]


if __name__ == "__main__":
    sys.exit(main())
