"""`make demo`: the order system on the embedded broker, in a folder of its own that is gone afterwards.

Nothing here but the commands that a user types.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOWRUN = Path(sys.executable).parent / "flowrun"


def main() -> int:
    """Run the demo's commands; its exit code is the first one that is not 0."""
    with tempfile.TemporaryDirectory(prefix="flowrun-demo-") as folder:
        environment = {
            **os.environ,
            "FLOWRUN_BROKER": "embedded:",
            "FLOWRUN_STORE": f"sqlite:{folder}/shop.db",
            "SHOP_DATA": folder,
        }
        for command in (
            ["validate"],
            ["emit", "order.requested", "--file", "flows/demo-orders.jsonl"],
            ["start", "--until-idle"],
            ["runs", "list"],
        ):
            print(f"\n$ flowrun {' '.join(command)}", flush=True)
            code = subprocess.run([FLOWRUN, *command], cwd=ROOT, env=environment, check=False).returncode
            if code != 0:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
