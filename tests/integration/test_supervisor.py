"""`flowrun start` as a family of processes: who dies is replaced, who is told to stop stops, nobody is left over."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
from project import PATIENCE_S, Shop, stop, wait_for_line, wait_until

FLOW = """
flow: jobs
events: {job: {external: true}}
routes: [{on: job, to: work}]
handlers:
  work:
    retry: {max_attempts: 1}
    steps:
      - id: first
        use: work.note
        with: {name: "{{ event.name }}"}
        compensate: {use: work.note, with: {name: undone}}
      - {id: second, use: work.do, with: {name: "{{ event.name }}"}}
      - {id: third, use: work.think, when: 'event.name is startswith("thread")'}
"""
PLUGIN = """
import asyncio, ctypes, os, signal, sys, time
from pathlib import Path
from runner import Context, handler

HERE = Path(os.environ["SHOP_DATA"])

@handler("work.note")
async def note(ctx: Context, *, name: str) -> None:
    with (HERE / "notes").open("a") as file:
        file.write(f"{os.getpid()} {name}\\n")

def recurse(n):
    return recurse(n + 1) + 1

@handler("work.do")
async def do(ctx: Context, *, name: str) -> None:
    match name.partition("-")[0]:
        case "hang":
            (HERE / "hangs").touch()  # what was before is recorded by now
            while not (HERE / "go on").exists():
                await asyncio.sleep(0.01)
        case "stubborn":
            while not (HERE / "go on").exists():
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    continue
        case "exit":
            sys.exit(3)
        case "os_exit":
            os._exit(3)
        case "segv":
            ctypes.string_at(0)
        case "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "memory":
            raise MemoryError
        case "recursion":
            recurse(0)
        case "block":
            time.sleep(1.8)
        case "stuck":
            while True:
                time.sleep(0.05)

@handler("work.think")
def think(ctx: Context) -> None:
    while not (HERE / "go on").exists():
        time.sleep(0.01)
"""


class Works(Shop):
    """The project above, in a folder of the test's own."""

    def notes(self) -> list[tuple[int, str]]:
        """(pid, name) of what the first step was called with."""
        path = self.folder / "data" / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(pid), name) for pid, _, name in (line.partition(" ") for line in lines)]

    def emit(self, *names: str) -> None:
        path = self.folder / "jobs.jsonl"
        path.write_text("".join(json.dumps({"name": name}) + "\n" for name in names))
        self.run("emit", "job", "--file", str(path))

    def noted(self, name: str) -> Callable[[], bool]:
        return lambda: any(known == name for _, known in self.notes())

    def go_on(self) -> None:
        (self.folder / "data" / "go on").touch()

    def states(self) -> dict[str, int]:
        return dict(self.query("shop", "SELECT state, count(*) FROM runs GROUP BY state"))


@pytest.fixture
def works(tmp_path: Path) -> Iterator[Works]:
    for folder, name, text in (("flows", "jobs.yaml", FLOW), ("plugins", "work.py", PLUGIN)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    (tmp_path / "data").mkdir()
    with Works(tmp_path, root=tmp_path) as works:
        yield works


def children(pid: int) -> list[int]:
    """The pids of a process's living children."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and pid == parent(int(entry.name)):
            found.append(int(entry.name))
    return found


def parent(pid: int) -> int | None:
    """None for one that is gone, or dead and only not yet asked for."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def is_gone(pid: int) -> bool:
    return parent(pid) is None


# --- crashes


def test_a_worker_that_is_killed_is_replaced_and_its_work_goes_on_in_the_same_start(works: Works) -> None:
    start = works.start()
    wait_for_line(start, "ready")
    [worker] = children(start.pid)
    works.emit("hang-1")
    wait_until((works.folder / "data" / "hangs").exists, alive=start)

    os.kill(worker, signal.SIGKILL)

    told = wait_for_line(start, "another begins")
    assert "a worker process died (signal SIGKILL)" in told[-1]
    works.go_on()
    wait_for_line(start, "jobs.work  completed")
    assert children(start.pid) != [worker]
    assert [name for _, name in works.notes()] == ["hang-1"], "what is recorded is not done again"
    works.emit("another")
    wait_for_line(start, "jobs.work  completed")
    assert stop(start)[0] == 0
    assert works.states() == {"completed": 2}


def test_the_workers_die_with_their_supervisor(works: Works) -> None:
    start = works.start("--workers", "2")
    wait_until(lambda: len(children(start.pid)) == 2, alive=start)
    wait_for_line(start, "ready")
    works.emit("hang-1")
    wait_until(works.noted("hang-1"), alive=start)
    workers = children(start.pid)

    start.kill()
    start.wait()

    wait_until(lambda: all(is_gone(pid) for pid in workers))
    works.go_on()
    works.run("start", "--until-idle", "--quiet")
    assert works.states() == {"completed": 1}


@pytest.mark.parametrize(
    ("how", "error", "died"),
    [
        ("exit", "internal", None),
        ("memory", "internal", None),
        ("recursion", "internal", None),
        ("os_exit", "crashed", "exit code 3"),
        ("segv", "crashed", "signal SIGSEGV"),
        ("sigkill", "crashed", "signal SIGKILL"),
    ],
)
def test_a_handler_that_takes_its_process_with_it_harms_its_own_message_only(
    works: Works, how: str, error: str, died: str | None
) -> None:
    good = [f"good-{n}" for n in range(10)]
    works.emit(*good[:5], f"{how}-1", *good[5:])

    told = works.run("start", "--until-idle", "--quiet").stderr

    assert works.states() == {"completed": 10, "compensated": 1}
    [bad] = works.json("runs", "list", "--state", "compensated")
    assert bad["error"]["type"] == error
    assert sum(name == "undone" for _, name in works.notes()) == 1
    if died is None:
        assert "process died" not in told
    else:
        assert told.count(f"process died ({died})") == 3, told
        assert "Traceback" not in told


# --- a loop that does not turn


def test_a_handler_that_blocks_the_loop_is_named_and_goes_on(works: Works) -> None:
    start = works.start()
    wait_for_line(start, "ready")

    works.emit("block-1")

    blamed = wait_for_line(start, "the event loop is blocked")[-1]
    line = next(n for n, text in enumerate(PLUGIN.splitlines(), 1) if "time.sleep(1.8)" in text)
    assert f"by plugins/work.py:{line}, in do: nothing else runs meanwhile" in blamed
    wait_for_line(start, "the event loop goes on, after about")
    assert stop(start)[0] == 0
    assert works.states() == {"completed": 1}


IMPATIENT = """
import runner.watchdog
from runner.cli import main

runner.watchdog.STUCK_S = 1.0
main()
"""


def test_a_handler_that_blocks_for_ever_is_ended_and_its_message_put_aside(works: Works) -> None:
    works.emit("good-1", "stuck-1", "good-2")

    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, "start", "--until-idle"],
        cwd=works.root, env=works.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("this process ends") == 3
    assert done.stderr.count("process died (exit code 70)") == 3
    assert works.states() == {"completed": 2, "compensated": 1}
    [bad] = works.json("runs", "list", "--error", "crashed")
    assert bad["state"] == "compensated"


# --- many


def test_all_workers_take_part_and_all_end_on_a_signal(works: Works) -> None:
    start = works.start("--workers", "3")
    wait_for_line(start, "ready")
    wait_until(lambda: len(children(start.pid)) == 3, alive=start)
    workers = children(start.pid)

    def all_took_part() -> bool:
        works.emit("job")  # one at a time: who looks first takes all that is there, and nobody reads the log meanwhile
        return {pid for pid, _ in works.notes()} == set(workers)

    wait_until(all_took_part, alive=start)
    code, output = stop(start)

    assert code == 0, output
    assert all(is_gone(pid) for pid in workers)
    assert output.count("stopping") == 1
    assert {f"[worker {n}] stopped" in output for n in (1, 2, 3)} == {True}
    works.run("start", "--workers", "3", "--until-idle", "--quiet")
    assert set(works.states()) == {"completed"}


# --- signals


def test_a_second_signal_ends_at_once(works: Works) -> None:
    start = works.start()
    wait_for_line(start, "ready")
    works.emit("stubborn-1")
    wait_until(works.noted("stubborn-1"), alive=start)
    workers = children(start.pid)

    start.send_signal(signal.SIGTERM)
    wait_for_line(start, "stopping: running steps end first")
    code, output = stop(start, signal.SIGTERM)

    assert (code, output) == (130, "stopped at once\n")
    wait_until(lambda: all(is_gone(pid) for pid in workers))
    works.go_on()
    works.run("start", "--until-idle", "--quiet")
    assert works.states() == {"completed": 1}


def test_control_c_drains_although_the_terminal_tells_every_process(works: Works) -> None:
    start = subprocess.Popen(
        [Path(sys.executable).parent / "flowrun", "start", "--workers", "2"],
        cwd=works.root, env=works.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    works.started.append(start)
    wait_for_line(start, "ready")
    works.emit("hang-1")
    wait_until(works.noted("hang-1"), alive=start)

    os.killpg(start.pid, signal.SIGINT)

    wait_for_line(start, "stopping")
    assert start.poll() is None, "it waits for the running step"
    works.go_on()
    assert start.stdout is not None
    output = start.stdout.read()
    assert start.wait(PATIENCE_S) == 0, output
    assert "aborted" not in output
    assert "Traceback" not in output
    works.run("start", "--until-idle", "--quiet")
    assert works.states() == {"completed": 1}
    assert len(works.notes()) == 1


@pytest.mark.parametrize("how", ["hang", "stubborn", "thread"])
def test_a_drain_that_takes_longer_than_its_grace_says_so_and_loses_nothing(works: Works, how: str) -> None:
    """Also where a handler does not heed that it is cancelled, and where it cannot, in a thread."""
    start = works.start("--grace", "100ms")
    wait_for_line(start, "ready")
    works.emit(f"{how}-1", "good-1")
    wait_until(works.noted(f"{how}-1"), alive=start)

    code, output = stop(start)

    assert code == 75, output
    assert "some steps did not end within the grace; the next start takes their runs up" in output
    works.go_on()
    works.run("start", "--until-idle", "--quiet")
    assert works.states() == {"completed": 2}


# --- starts that fail


@pytest.mark.parametrize("workers", ["1", "3"])
def test_an_invalid_flow_is_said_once_and_nothing_starts(works: Works, workers: str) -> None:
    flow = works.root / "flows" / "jobs.yaml"
    flow.write_text(flow.read_text().replace("work.note", "work.noet", 1))

    done = works.run("start", "--workers", workers, check=False)

    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert said.count("work.noet") == said.count("no handler") + said.count("use: work.noet"), said
    assert said.count("error[") == 1
    assert "process died" not in said
    assert not (works.folder / "shop.db").exists()


NOWHERE = {
    "broker": ("--broker", "amqp://guest:hidden@127.0.0.1:1/"),
    "store": ("--broker", "amqp://guest:hidden@127.0.0.1:1/", "--store", "postgresql://ada:hidden@127.0.0.1:1/db"),
}


@pytest.mark.parametrize("which", NOWHERE)
@pytest.mark.parametrize("wait_s", [0, 1])
def test_what_is_not_there_is_said_and_after_the_wait_it_is_the_end(works: Works, which: str, wait_s: int) -> None:
    began = time.monotonic()

    done = works.run("start", "--wait", f"{wait_s}s", *NOWHERE[which], check=False)

    assert done.returncode == 69, done.stderr
    assert time.monotonic() - began >= wait_s
    assert done.stderr.count("error: ") == 1
    assert ("waiting for it" in done.stderr) is (wait_s > 0)
    assert "127.0.0.1:1" in done.stderr
    assert "hidden" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_while_it_waits_ends_it(works: Works) -> None:
    start = works.start("--wait", "1h", *NOWHERE["broker"])
    wait_for_line(start, "waiting for it")

    code, output = stop(start)

    assert code in (0, 69), output
    assert "Traceback" not in output


@pytest.mark.postgres
@pytest.mark.rabbitmq
def test_with_wait_it_begins_once_the_store_is_there(works: Works, rabbit_url: str, postgres_url: str) -> None:
    """The database is made while it waits."""
    server, _, name = postgres_url.rpartition("/")
    missing = f"{server}/{name}_late"
    start = works.start("--wait", "30s", "--broker", rabbit_url, "--store", missing)
    wait_for_line(start, "waiting for it")

    create_database(postgres_url, f"{name}_late")

    wait_for_line(start, "ready")
    assert stop(start)[0] == 0


def create_database(url: str, name: str) -> None:
    async def create() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(f'CREATE DATABASE "{name}"')
        await connection.close()

    asyncio.run(create())
