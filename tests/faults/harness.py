"""What every fault test does: a project under load, a fault, and a verdict from the store and the ledger.

The project is `ledger/`: a job makes three entries, or is struck out again, and is noted downstream. A `Site` is that
project on one broker and one store, with the `flowrun` processes that a test starts and the jobs that the broker
confirmed. All calls block; a test that needs several at once uses threads.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel
from project import FLOWRUN

PROJECT = Path(__file__).parent / "ledger"
PATIENCE_S = 90.0
POLL_S = 0.05
ENTRIES = {"one", "two", "three"}
KINDS = ("good", "good", "wide", "bad", "flaky", "torn")

# A producer meets every fault on purpose.
logging.getLogger("pika").setLevel(logging.CRITICAL)

T = TypeVar("T")
Rows = list[tuple[Any, ...]]


# --- sizes, seeds, rows ------------------------------------------------------------------------------------


def size(small: T, large: T) -> T:
    """The one for the daily run, or with FLOWRUN_FAULTS=large the one for the record."""
    return large if os.environ.get("FLOWRUN_FAULTS") == "large" else small


def chance() -> random.Random:
    """The test's randomness. Its seed is printed, and FLOWRUN_FAULT_SEED plays it again."""
    seed = int(os.environ.get("FLOWRUN_FAULT_SEED") or random.randrange(2**32))
    print(f"FLOWRUN_FAULT_SEED={seed}")
    return random.Random(seed)


def record_row(
    fault: str, times: int, verdicts: Sequence[Verdict], recovery_s: Sequence[float], note: str = ""
) -> None:
    """Append a row of the table, a JSON line, to the file that FLOWRUN_FAULTS_TABLE names.

    Keys: fault, times, confirmed, lost, doubled, stuck, unsent (counts), recovery_s (a list), note.
    """
    counts = {
        name: sum(len(getattr(verdict, name)) for verdict in verdicts)
        for name in ("confirmed", "lost", "doubled", "stuck", "unsent")
    }
    seconds = [round(second, 2) for second in recovery_s]
    row = {"fault": fault, "times": times, **counts, "recovery_s": seconds, "note": note}
    print(row)
    if named := os.environ.get("FLOWRUN_FAULTS_TABLE"):
        with open(named, "a") as table:
            table.write(json.dumps(row) + "\n")


# --- waiting ----------------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Return once the condition holds; fail, naming `what` was waited for, if it does not in time."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:g} s in vain for {what}"
        time.sleep(POLL_S)


# --- processes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runner:
    """A `flowrun start`: one process, or one that watches over workers, its children."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def workers(self) -> list[int]:
        """The pids of those that run flows: its children, or itself if it has none."""
        return _children(self.pid) or [self.pid]

    def kill(self) -> None:
        """kill -9, and wait until its workers are gone too."""
        workers = self.workers()
        self.process.kill()
        self.process.wait()
        wait_until(lambda: not any(_lives(pid) for pid in workers), "the workers of a killed runner to end")

    def terminate(self) -> int:
        """SIGTERM; its exit code, once it has drained."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def output(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")


def kill_worker(pid: int) -> None:
    """kill -9 one worker; whoever watches over it may start another."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- jobs from outside -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """An event `job.asked`. `n` is its place in the ledger; its message's id never changes."""

    n: int
    kind: str

    @property
    def message_id(self) -> str:
        return f"job-{self.n}"

    @property
    def body(self) -> bytes:
        return json.dumps({"n": self.n, "kind": self.kind}).encode()


class Producer:
    """A program that is not flowrun: plain pika, persistent, mandatory, each message confirmed.

    Sends again, under the same id and to the next of `urls`, what was not confirmed. For one thread.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = itertools.cycle(urls)
        self._channel: BlockingChannel | None = None

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    def publish(self, job: Job, give_up: Callable[[], bool]) -> bool:
        """True once the broker has confirmed it; False if `give_up` said so before."""
        while not self._confirmed(job):
            if give_up():
                return False
            time.sleep(POLL_S)
        return True

    def _confirmed(self, job: Job) -> bool:
        properties = pika.BasicProperties(message_id=job.message_id, delivery_mode=2, content_type="application/json")
        try:
            self._open().basic_publish("ledger.events", "job.asked", job.body, properties, mandatory=True)
        except pika.exceptions.UnroutableError:
            return False  # the queue is not there yet
        except (pika.exceptions.AMQPError, OSError):
            # Also of a nack: a channel that met a quorum queue without a leader may be nacked for ever (3.10.8).
            self._drop()
            return False
        return True

    def _open(self) -> BlockingChannel:
        if self._channel is None:
            parameters = pika.URLParameters(next(self._urls))
            parameters.heartbeat = 5  # a broker that is frozen is given up soon
            parameters.socket_timeout = parameters.stack_timeout = 5
            self._channel = pika.BlockingConnection(parameters).channel()
            self._channel.confirm_delivery()
        return self._channel

    def _drop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            with suppress(pika.exceptions.AMQPError, OSError):
                channel.connection.close()


class Load(threading.Thread):
    """Publishes jobs at a steady rate until it is stopped; what the broker confirmed is added to the site's."""

    def __init__(self, site: Site, rate: float, kinds: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self._site = site
        self._rate = rate
        self._kinds = itertools.cycle(kinds)
        self._stopped = threading.Event()
        self._give_up_at = float("inf")

    def run(self) -> None:
        with Producer(self._site.producer_urls) as producer:
            while not self._stopped.wait(1 / self._rate):
                job = self._site.new_job(next(self._kinds))
                if producer.publish(job, lambda: time.monotonic() > self._give_up_at):
                    self._site.confirmed.add(job)

    def stop(self) -> None:
        """Let the message in hand be confirmed, if the broker is there to do so."""
        self._give_up_at = time.monotonic() + PATIENCE_S
        self._stopped.set()
        self.join()


# --- the project under test ----------------------------------------------------------------------------------


@dataclass
class Site:
    """The ledger project on `brokers` (tried in order) and `store`, with a ledger and logs below `folder`.

    `producer_urls` is where jobs come in: the broker itself, when flowrun reaches it only through a fault proxy.
    """

    folder: Path
    brokers: tuple[str, ...] = ("embedded:",)
    store: str = ""
    producer_urls: tuple[str, ...] = ()
    confirmed: set[Job] = field(default_factory=set)
    runners: list[Runner] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.store = self.store or f"sqlite:{self.folder}/store.db"
        self.producer_urls = self.producer_urls or self.brokers
        self._numbers = itertools.count(1)
        self._root = PROJECT
        if len(self.brokers) > 1:  # a variable holds one URL, the file a list
            self._root = self.folder / "ledger"
            shutil.copytree(PROJECT, self._root)
            (self._root / "flowrun.yaml").write_text(f"project: ledger\nbroker: {json.dumps(self.brokers)}\n")

    def __enter__(self) -> Site:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Nothing goes on; of a test that failed, what the runners said is shown."""
        for runner in self.runners:
            if runner.alive:
                runner.kill()
            if kind is not None:
                print(f"--- {runner.log.name}\n{runner.output()[-4000:]}")

    # --- flowrun

    @property
    def environment(self) -> dict[str, str]:
        """What every command gets."""
        broker = {"FLOWRUN_BROKER": self.brokers[0]} if len(self.brokers) == 1 else {}
        ours = {"FLOWRUN_STORE": self.store, "LEDGER": str(self.folder / "calls.db"), "PYTHONDONTWRITEBYTECODE": "1"}
        others = {name: value for name, value in os.environ.items() if not name.startswith("FLOWRUN_")}
        return {**others, **broker, **ours}

    def start(self, *arguments: str) -> Runner:
        """Begin `flowrun start --quiet`, and return without waiting."""
        log = self.folder / f"runner-{len(self.runners) + 1}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [FLOWRUN, "start", "--quiet", *arguments],
                cwd=self._root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        runner = Runner(process, log)
        self.runners.append(runner)
        return runner

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = subprocess.run(
            [FLOWRUN, *arguments],
            cwd=self._root,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    # --- jobs

    def new_job(self, kind: str) -> Job:
        return Job(next(self._numbers), kind)

    def publish(self, count: int, kinds: Sequence[str] = KINDS) -> list[Job]:
        """Publish so many jobs, each confirmed; the kinds take turns."""
        jobs = []
        deadline = time.monotonic() + PATIENCE_S
        with Producer(self.producer_urls) as producer:
            for _, kind in zip(range(count), itertools.cycle(kinds), strict=False):
                job = self.new_job(kind)
                assert producer.publish(job, lambda: time.monotonic() > deadline), "the broker confirms nothing"
                self.confirmed.add(job)
                jobs.append(job)
        return jobs

    def emit(self, count: int, kinds: Sequence[str] = KINDS) -> None:
        """Publish so many jobs with `flowrun emit`: on the embedded broker there is no other way."""
        jobs = [self.new_job(kind) for _, kind in zip(range(count), itertools.cycle(kinds), strict=False)]
        lines = self.folder / "jobs.jsonl"
        lines.write_bytes(b"".join(job.body + b"\n" for job in jobs))
        self.run("emit", "job.asked", "--file", str(lines))
        self.confirmed.update(jobs)

    @contextmanager
    def load(self, rate: float, kinds: Sequence[str] = KINDS) -> Iterator[Load]:
        """Jobs come in meanwhile, so many a second."""
        load = Load(self, rate, kinds)
        load.start()
        try:
            yield load
        finally:
            load.stop()

    def probe(self, since: float, patience_s: float = PATIENCE_S) -> float:
        """Seconds from `since`, a time.time(), until a fresh job went all the way and is noted downstream."""
        [job] = self.publish(1, ["good"])
        wait_until(lambda: self.noted(job), f"job {job.n} to be noted", patience_s)
        return time.time() - since

    # --- what became of them

    def noted(self, job: Job) -> bool:
        return bool(self.ledger(f"SELECT 1 FROM effects WHERE job = {job.n} AND step = 'note'"))

    def count_noted(self) -> int:
        """How many jobs have come to their end downstream."""
        return sum(row[0] for row in self.ledger("SELECT count(*) FROM effects WHERE step = 'note'"))

    def ledger(self, sql: str) -> Rows:
        """Ask the ledger; no rows while it is not there."""
        return _query_sqlite(self.folder / "calls.db", sql)

    def query(self, sql: str) -> Rows:
        """Ask the store; no rows while it is not there."""
        if self.store.startswith("sqlite:"):
            return _query_sqlite(Path(self.store.removeprefix("sqlite:")), sql)
        return asyncio.run(_query_postgres(self.store, sql))

    def verdict(self) -> Verdict:
        """How things stand now."""
        return judge(
            frozenset(self.confirmed),
            runs=self.query("SELECT handler, state, trigger, data, finished_at, error FROM runs"),
            letters=self.query("SELECT handler, body FROM dead_letters"),
            events=self.query("SELECT id, data FROM events WHERE type IN ('job.done', 'job.refused')"),
            unsent=self.query("SELECT routing_key, body FROM outbox"),
            effects=self.ledger("SELECT key, job, step FROM effects"),
        )

    def settled(self, patience_s: float = PATIENCE_S) -> Verdict:
        """The verdict once nothing is missing any more; as it stands, if that does not come in time."""
        deadline = time.monotonic() + patience_s
        while not (verdict := self.verdict()).kept and time.monotonic() < deadline:
            time.sleep(10 * POLL_S)
        return verdict


def _query_sqlite(path: Path, sql: str) -> Rows:
    if not path.exists():
        return []
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        try:
            return connection.execute(sql).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise


async def _query_postgres(url: str, sql: str) -> Rows:
    connection = await asyncpg.connect(url, server_settings={"search_path": "ledger"})
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    except asyncpg.UndefinedTableError:
        return []
    finally:
        await connection.close()


# --- the verdict -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of the confirmed jobs; all but the first three should be empty. Jobs by their `n`."""

    confirmed: frozenset[int]
    finished: frozenset[int]
    """A run of `work` came to its end."""
    dead: frozenset[int]
    lost: frozenset[int]
    """Confirmed, or said by a run, but there is neither a run, nor a dead letter, nor a row in the outbox."""
    doubled: tuple[str, ...]
    """Two idempotency keys for one step of a job, two runs for one message, two events of one run."""
    stuck: tuple[str, ...]
    """Runs that are not finished."""
    unsent: frozenset[int]
    """Said by a run, and still in the outbox."""
    broken: tuple[str, ...]
    """Runs whose state and whose entries in the ledger disagree."""

    @property
    def kept(self) -> bool:
        """Whether the promise is kept, and nothing is under way."""
        return not (self.lost or self.doubled or self.stuck or self.unsent or self.broken)

    def assert_kept(self) -> None:
        """Fail, naming the first of each sort."""
        said = {
            name: sorted(getattr(self, name))[:10]
            for name in ("lost", "doubled", "stuck", "unsent", "broken")
            if getattr(self, name)
        }
        assert self.kept, f"of {len(self.confirmed)} confirmed jobs: {said}"
        assert self.confirmed <= self.finished | self.dead


def judge(confirmed: Iterable[Job], *, runs: Rows, letters: Rows, events: Rows, unsent: Rows, effects: Rows) -> Verdict:
    """The verdict from rows of the store and of the ledger; see `Site.verdict` for their columns."""
    jobs = frozenset(job.n for job in confirmed)
    begun: dict[str, Counter[int]] = {"ledger.work": Counter(), "ledger.note": Counter()}
    unfinished: Counter[int] = Counter()
    messages: Counter[tuple[str, str, str]] = Counter()
    stuck = []
    for handler, state, trigger, data, finished_at, _ in runs:
        n, meta = _number(data), json.loads(trigger)
        begun[handler][n] += 1
        messages[handler, meta["source"], meta["id"]] += 1
        if finished_at is None:
            unfinished[n] += 1
            stuck.append(f"{handler} of job {n} is {state}")
    dead = {name: {n for handler, body in letters if handler == name for n in _numbers(body)} for name in begun}
    said = Counter(_number(data) for _, data in events)
    waiting = frozenset(_number(body) for _, body in unsent)
    unheard = {n for n in said if n not in begun["ledger.note"] and n not in dead["ledger.note"] and n not in waiting}
    lost = {n for n in jobs if n not in begun["ledger.work"] and n not in dead["ledger.work"]} | unheard
    return Verdict(
        confirmed=jobs,
        finished=frozenset(n for n in begun["ledger.work"] if n not in unfinished),
        dead=frozenset(set().union(*dead.values())),
        lost=frozenset(lost),
        doubled=tuple(_doubled(begun, messages, said, effects)),
        stuck=tuple(stuck),
        unsent=waiting,
        broken=tuple(_broken(runs, effects)),
    )


def _doubled(
    begun: dict[str, Counter[int]], messages: Counter[tuple[str, str, str]], said: Counter[int], effects: Rows
) -> Iterator[str]:
    yield from (
        f"job {n} has {count} runs of {name}" for name in begun for n, count in begun[name].items() if count > 1
    )
    yield from (f"{count} runs for {message}" for message, count in messages.items() if count > 1)
    yield from (f"job {n} said {count} times what became of it" for n, count in said.items() if count > 1)
    keys = Counter((job, step) for _, job, step in effects)
    yield from (f'job {job} did "{step}" {count} times' for (job, step), count in keys.items() if count > 1)


def _broken(runs: Rows, effects: Rows) -> Iterator[str]:
    """A completed run has entered all its steps, a compensated one has struck out each that it entered."""
    steps: dict[int, set[str]] = {}
    for _, job, step in effects:
        steps.setdefault(job, set()).add(step)
    for handler, state, _, data, finished_at, error in runs:
        n = _number(data)
        done = steps.get(n, set())
        if finished_at is None or '"crashed"' in (error or ""):  # a step that was cut off for good may have been done
            continue
        if handler == "ledger.note":
            whole = state == "completed" and "note" in done
        else:
            entered, undone = done & ENTRIES, {step.removeprefix("undo ") for step in done if step.startswith("undo ")}
            whole = entered == ENTRIES and not undone if state == "completed" else entered == undone
        if not whole:
            yield f"{handler} of job {n} is {state} with {sorted(done)}"


def _number(data: bytes | str) -> int:
    return int(json.loads(bytes(data) if isinstance(data, memoryview) else data)["n"])


def _numbers(body: bytes) -> list[int]:
    """The number of the job that a dead letter is; none of a body that is no job at all."""
    try:
        return [_number(body)]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return []
