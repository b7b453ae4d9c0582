"""A site whose `flowrun start` is `crashing.py`'s: it dies where a test says, or breaks a promise on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from faults.crashing import Handed, Point, read_deliveries
from faults.harness import Runner, Site, wait_until

STORED_TO_S = 0.001
DRIVER = Path(__file__).parent / "crashing.py"


@dataclass
class DrivenSite(Site):
    """`breaks` is "inbox" or "ack" for a product that breaks its word, "" for the one that there is."""

    breaks: str = ""

    def start(self, *arguments: str, point: Point | None = None) -> Runner:
        """Begin `flowrun start --quiet`, to die at `point` once that is armed."""
        more = {"FLOWRUN_BREAK": self.breaks, "FLOWRUN_DELIVERIES": str(self._deliveries)}
        if point is not None:
            more |= {"FLOWRUN_CRASH": str(point), "FLOWRUN_CRASH_ARMED": str(self._armed)}
        log = self.folder / f"runner-{len(self.runners) + 1}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, DRIVER, "start", "--quiet", *arguments],
                cwd=self._root,
                env={**self.environment, **more},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        runner = Runner(process, log)
        self.runners.append(runner)
        return runner

    def arm(self) -> None:
        """From now on the calls count towards the point at which a process dies."""
        self._armed.touch()

    @property
    def has_died(self) -> bool:
        """Whether the point was reached since it was armed."""
        return not self._armed.exists()

    def wait_for_death(self, runner: Runner, point: Point) -> None:
        """Return once a process has died at the point; what is left of the runner goes with it."""
        wait_until(lambda: self.has_died or not runner.alive, f"the death {point}")
        assert self.has_died, f"it ended by itself:\n{runner.output()}"
        runner.kill()

    def finish(self) -> None:
        """Run until nothing is left to do."""
        code = self.start("--until-idle").process.wait(120)
        assert code == 0, self.runners[-1].output()

    def deliveries(self) -> list[Handed]:
        """All that the broker has handed over so far."""
        return read_deliveries(self._deliveries)

    def redelivered_in_vain(self) -> list[Handed]:
        """Messages that came again although their run stood already."""
        begun = {}
        for handler, trigger, started_at in self.query("SELECT handler, trigger, started_at FROM runs"):
            moment = datetime.fromisoformat(started_at).timestamp() + STORED_TO_S
            begun[f"ledger.{handler}", json.loads(trigger)["id"]] = moment
        return [h for h in self.deliveries() if h.redelivered and begun.get((h.queue, h.message_id), h.at) < h.at]

    @property
    def _armed(self) -> Path:
        return self.folder / "armed"

    @property
    def _deliveries(self) -> Path:
        return self.folder / "deliveries.jsonl"
