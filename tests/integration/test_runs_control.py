"""`flowrun runs retry|cancel|kill`, as a person types them: which runs, what is asked, what is said and kept."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from project import Shop, stop, wait_until

FLOW = """
flow: jobs
events:
  job: {schema: {type: object, required: [kind], properties: {kind: {type: string}}}, external: true}
routes:
  - {on: job, when: event.kind is startswith("ship"), to: ship}
  - {on: job, when: event.kind == "ask", to: ask}
  - {on: job, when: event.kind != "ask" and not (event.kind is startswith("ship")), to: work}
commands:
  book: {handler: book, timeout: 20s, schema: {type: object, required: [kind], properties: {kind: {type: string}}}}
handlers:
  ask:
    steps: [{command: book, with: {kind: booking}}]
  book:
    steps: [{id: b, use: desk.do, with: {what: b, kind: "{{ command.kind }}"}}]
  work:
    steps:
      - id: a
        when: event.kind != "bare"
        use: desk.do
        with: {what: a, kind: "{{ event.kind }}"}
        compensate: {use: desk.do, with: {what: undo_a, kind: "{{ event.kind }}"}}
      - {id: b, use: desk.do, with: {what: b, kind: "{{ event.kind }}"}}
  ship:
    steps:
      - {id: a, use: desk.do, with: {what: a, kind: "{{ event.kind }}"}, pivot: true}
      - {id: b, use: desk.do, with: {what: b, kind: "{{ event.kind }}"}}
"""
PLUGIN = """
import asyncio, os
from pathlib import Path
from runner import Context, RetryableError, TerminalError, handler

HERE = Path(os.environ["SHOP_DATA"])

@handler("desk.do")
async def do(ctx: Context, *, what: str, kind: str) -> None:
    with (HERE / "calls").open("a") as file:
        file.write(f"{kind} {what} {ctx.idempotency_key}\\n")
    if what == "a" or (HERE / "mended").exists():
        return
    match kind, what:
        case "stuck", "undo_a":
            raise TerminalError("locked")
        case ("bare" | "undo" | "stuck" | "ship" | "booking"), "b":
            raise TerminalError(f"no_{kind}")
        case ("later" | "ship_later"), "b":
            raise RetryableError("busy", retry_after_s=3600)
        case "hang", "b":
            while not (HERE / "let go").exists():
                await asyncio.sleep(0.01)
"""
ME = f"{getpass.getuser()}@{os.uname().nodename}"
ENDED = ("ok", "bare", "undo", "stuck", "ship")


class Desk(Shop):
    """A project with runs that ended in every way."""

    def emit(self, *kinds: str) -> None:
        path = self.folder / "jobs.jsonl"
        path.write_text("".join(json.dumps({"kind": kind}) + "\n" for kind in kinds))
        self.run("emit", "job", "--file", str(path))

    def calls(self, kind: str) -> list[str]:
        """What was called for a kind, in order."""
        return [what for known, what, _ in self._calls() if known == kind]

    def keys(self, kind: str, what: str) -> set[str]:
        return {key for known, called, key in self._calls() if (known, called) == (kind, what)}

    def _calls(self) -> list[list[str]]:
        path = self.folder / "data" / "calls"
        return [line.split(" ") for line in path.read_text().splitlines()] if path.exists() else []

    def ids(self, kind: str) -> list[str]:
        """The runs of a kind, the first first."""
        sql = f"SELECT id FROM runs WHERE json_extract(CAST(data AS TEXT), '$.kind') = '{kind}' ORDER BY started_at"
        return [row[0] for row in self.query("shop", sql)]

    def state(self, kind: str) -> str:
        """That of the first run of a kind."""
        ids = self.ids(kind)
        return str(self.query("shop", f"SELECT state FROM runs WHERE id = '{ids[0]}'")[0][0]) if ids else ""

    def is_in(self, kind: str, state: str) -> Callable[[], bool]:
        return lambda: self.state(kind) == state

    def mend(self) -> None:
        (self.folder / "data" / "mended").touch()

    def go_on(self) -> None:
        self.run("start", "--until-idle", "--quiet")

    def runs(self, *arguments: str, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `flowrun runs …`, and check what holds of all of them."""
        done = self.run("runs", *arguments, check=False, **options)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        assert "internal error" not in done.stderr
        return done

    def interventions(self, kind: str) -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = self.json("runs", "show", self.ids(kind)[0])["interventions"]
        return shown


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run of each kind has ended."""
    folder = tmp_path_factory.mktemp("desk")
    for name, file, text in (("flows", "jobs.yaml", FLOW), ("plugins", "desk.py", PLUGIN)):
        (folder / name).mkdir()
        (folder / name / file).write_text(text)
    (folder / "flowrun.yaml").write_text("project: shop\n")
    (folder / "data").mkdir()
    desk = Desk(folder, root=folder)
    desk.emit(*ENDED)
    desk.go_on()
    return folder


@pytest.fixture
def desk(ended: Path, tmp_path: Path) -> Iterator[Desk]:
    folder = tmp_path / "desk"
    shutil.copytree(ended, folder)
    with Desk(folder, root=folder) as desk:
        assert [desk.state(kind) for kind in ENDED] == [
            "completed", "failed", "compensated", "compensation_failed", "failed",
        ]  # fmt: skip
        yield desk


# --- what a person must look at


def test_doctor_counts_what_waits_for_a_person(desk: Desk) -> None:
    said = desk.run("doctor").stdout
    assert "2 ended as failed" in said
    assert "1 ended as compensation_failed" in said
    assert "flowrun runs list --state compensation_failed" in said


# --- retry


def test_a_failed_run_is_retried_by_the_beginning_of_its_id_and_says_who_and_why(desk: Desk) -> None:
    [run] = desk.ids("ship")
    desk.mend()

    done = desk.runs("retry", run[:8], "--reason", "the van is back")
    assert (done.stdout, done.stderr) == ("retried 1 run\n", "")
    desk.go_on()

    assert desk.state("ship") == "completed"
    assert desk.calls("ship") == ["a", "b", "b"]
    assert len(desk.keys("ship", "b")) == 1
    text = desk.runs("show", run[:8]).stdout
    assert f"☞ retry, by {ME}: the van is back" in text
    [note] = desk.interventions("ship")
    assert (note["action"], note["by"], note["was"], note["reason"]) == ("retry", ME, "failed", "the van is back")
    assert note["at"].endswith("Z")


def test_all_takes_what_failed_and_not_what_was_undone(desk: Desk) -> None:
    desk.mend()

    head, *rows, total = desk.runs("retry", "--all", "--dry-run").stdout.splitlines()
    assert (head.split()[:3], total) == (["RUN", "HANDLER", "STATE"], "would retry 3 runs")
    assert {row.split()[0] for row in rows} == {desk.ids(kind)[0][:8] for kind in ("bare", "stuck", "ship")}
    assert desk.state("bare") == "failed"
    assert desk.runs("retry", "--all").stdout == "retried 3 runs\n"
    desk.go_on()

    assert [desk.state(kind) for kind in ENDED] == ["completed", "completed", "compensated", "compensated", "completed"]
    assert desk.calls("stuck") == ["a", "b", "undo_a", "undo_a"]
    assert desk.interventions("undo") == []


@pytest.mark.parametrize(
    ("filters", "kinds"),
    [
        (["--error", "no_bare"], ["bare"]),
        (["--handler", "jobs.ship"], ["ship"]),
        (["--state", "failed"], ["bare", "ship"]),
        (["--state", "failed", "--handler", "jobs.work"], ["bare"]),
        (["--all", "--error", "nothing"], []),
    ],
)
def test_filters_choose(desk: Desk, filters: list[str], kinds: list[str]) -> None:
    count = f"{len(kinds)} run{'' if len(kinds) == 1 else 's'}"
    assert desk.runs("retry", *filters).stdout == f"retried {count}\n"
    assert [kind for kind in ENDED if desk.state(kind) == "running"] == kinds


def test_filters_leave_alone_what_did_a_command_for_its_sender_may_have_undone_it(desk: Desk) -> None:
    desk.emit("ask")
    desk.go_on()
    assert (desk.state("ask"), desk.state("booking")) == ("failed", "failed")

    done = desk.runs("retry", "--handler", "jobs.book")
    assert done.stdout == "retried 0 runs\n"
    [booking] = desk.ids("booking")
    assert "left 1 run that did a command" in done.stderr
    assert booking[:8] in done.stderr
    assert desk.runs("retry", booking).stdout == "retried 1 run\n"


def test_what_was_undone_begins_anew_under_another_id(desk: Desk) -> None:
    desk.mend()

    said = desk.runs("retry", "--state", "compensated").stdout.splitlines()
    desk.go_on()

    old, new = desk.ids("undo")
    assert said == [f"{old[:8]} begins anew as {new[:8]}", "retried 1 run"]
    assert desk.calls("undo") == ["a", "b", "undo_a", "a", "b"]
    assert {run["id"]: run["state"] for run in desk.json("runs", "list") if run["id"] in (old, new)} == {
        old: "compensated",
        new: "completed",
    }
    assert f"☞ retry as {new[:8]}, by {ME}" in desk.runs("show", old).stdout


def test_what_was_undone_does_not_begin_anew_by_flow_files_that_do_not_compile(desk: Desk) -> None:
    (desk.root / "flows" / "jobs.yaml").write_text(FLOW.replace("desk.do", "desk.done"))

    done = desk.runs("retry", *desk.ids("undo"), code=1)

    assert "desk.done" in done.stdout + done.stderr
    assert desk.interventions("undo") == []
    assert desk.runs("retry", *desk.ids("bare")).stdout == "retried 1 run\n", "this one needs none"


def test_from_a_step(desk: Desk) -> None:
    [run] = desk.ids("ship")
    refused = desk.runs("retry", run, "--from", "c", code=1)
    assert refused.stdout == "retried 0 runs\n"
    assert refused.stderr.splitlines() == [
        f'error: run {run} never came to a step "c"',
        "  hint: it ran: a, b",
    ]
    desk.mend()
    desk.runs("retry", run, "--from", "a")
    desk.go_on()
    assert desk.calls("ship") == ["a", "b", "a", "b"]
    assert f"☞ retry from a, by {ME}" in desk.runs("show", run).stdout


def test_those_that_refuse_are_said_and_the_others_are_retried(desk: Desk) -> None:
    [ok], [bare] = desk.ids("ok"), desk.ids("bare")

    done = desk.runs("retry", ok, bare, code=1)

    assert done.stdout == "retried 1 run\n"
    assert done.stderr == f"error: run {ok} is completed: there is nothing to retry\n"
    assert desk.state("bare") == "running"
    again = desk.runs("retry", bare, code=1)
    assert again.stderr == f"error: run {bare} is running: it goes on by itself\n"
    assert len(desk.interventions("bare")) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["retry"], 2, "which ones? name their ids, or say --state, --handler, --error or --all"),
        (["cancel", "--yes"], 2, "which ones?"),
        (["retry", "abc", "--all"], 2, "name runs by id, or choose them by"),
        (["kill", "--yes", "--state", "completed"], 2, "'completed' is not one of"),
        (["retry", "--state", "running"], 2, "'running' is not one of"),
        (["retry", "nothing"], 1, 'there is no run "nothing"\n  hint: flowrun runs list shows them'),
        (["cancel", "--yes", ""], 1, 'more than one run begins with ""\n  hint: give more of its id'),
    ],
)
def test_what_cannot_be_meant_is_said(desk: Desk, arguments: list[str], code: int, said: str) -> None:
    assert said in desk.runs(*arguments, code=code).stderr


def test_a_project_without_a_store_has_nothing_to_retry(desk: Desk) -> None:
    (desk.folder / "shop.db").unlink()
    assert "there is no store at" in desk.runs("retry", "--all", code=1).stderr


# --- cancel


@pytest.fixture
def live(desk: Desk) -> Iterator[tuple[Desk, subprocess.Popen[str]]]:
    """A `flowrun start` with a run that waits for an hour, one past its pivot that does so, and one in mid-step."""
    start = desk.start("--quiet")
    desk.emit("later", "ship_later", "hang")
    for kind in ("later", "ship_later"):
        wait_until(desk.is_in(kind, "waiting"), alive=start)
    wait_until(lambda: "b" in desk.calls("hang"), alive=start)
    yield desk, start
    assert start.poll() is None, "it is still at work"
    (desk.folder / "data" / "let go").touch()
    code, output = stop(start)
    assert code == 0, output
    assert "Traceback" not in output


@pytest.mark.parametrize("kind", ["later", "hang"], ids=["waiting", "in mid-step"])
def test_a_run_of_a_living_start_is_cancelled_and_undone_there(
    live: tuple[Desk, subprocess.Popen[str]], kind: str
) -> None:
    desk, start = live
    [run] = desk.ids(kind)

    assert desk.runs("cancel", run, "--yes", "--reason", "wrong address").stdout == "asked to cancel 1 run\n"

    wait_until(desk.is_in(kind, "cancelled"), alive=start)
    assert desk.calls(kind) == ["a", "b", "undo_a"]
    [note] = desk.interventions(kind)
    was = "waiting" if kind == "later" else "running"
    assert (note["action"], note["by"], note["was"], note["reason"]) == ("cancel", ME, was, "wrong address")
    text = desk.runs("show", run).stdout
    assert f"☞ cancel, by {ME}: wrong address" in text
    assert f"error    cancelled: cancelled by {ME}: wrong address" in text
    again = desk.runs("cancel", run, "--yes", code=1)
    assert again.stderr == f"error: run {run} is cancelled: there is nothing to cancel\n"


def test_all_that_go_on_are_cancelled_but_those_past_their_pivot(live: tuple[Desk, subprocess.Popen[str]]) -> None:
    desk, start = live
    [pivoted] = desk.ids("ship_later")

    done = desk.runs("cancel", "--all", "--yes", code=1)

    assert done.stdout == "asked to cancel 2 runs\n"
    assert done.stderr.splitlines() == [
        f"error: run {pivoted} has passed its pivot: it cannot be undone any more",
        "  hint: flowrun runs kill ends it as it stands",
    ]
    for kind in ("later", "hang"):
        wait_until(desk.is_in(kind, "cancelled"), alive=start)
    assert desk.state("ship_later") == "waiting"
    assert desk.runs("kill", pivoted, "--yes").stdout == "killed 1 run\n"
    assert desk.state("ship_later") == "cancelled"


def test_a_run_in_mid_step_is_killed_and_its_start_goes_on_with_others(
    live: tuple[Desk, subprocess.Popen[str]],
) -> None:
    desk, start = live
    [run] = desk.ids("hang")

    done = desk.runs("kill", run, "--yes", "--reason", "it hangs")

    assert done.stdout == "killed 1 run\n"
    assert desk.state("hang") == "cancelled"
    desk.emit("fine")
    wait_until(desk.is_in("fine", "completed"), alive=start)
    assert desk.calls("hang") == ["a", "b"], "nothing is undone"
    text = desk.runs("show", run).stdout
    assert f"☞ kill, by {ME}: it hangs" in text
    assert desk.interventions("hang")[0]["was"] == "running"


def test_a_cancellation_that_nobody_is_there_to_do_is_shown_and_waits_for_the_next_start(desk: Desk) -> None:
    start = desk.start("--quiet")
    desk.emit("later")
    wait_until(desk.is_in("later", "waiting"), alive=start)
    stop(start)
    [run] = desk.ids("later")

    desk.runs("cancel", run, "--yes")

    assert desk.state("later") == "waiting"
    assert f"asked    cancel, by {ME}" in desk.runs("show", run).stdout
    desk.go_on()
    assert desk.state("later") == "cancelled"
    assert "asked " not in desk.runs("show", run).stdout


@pytest.mark.parametrize("verb", ["cancel", "kill"])
def test_without_yes_it_asks_and_does_nothing_unless_told(desk: Desk, verb: str) -> None:
    start = desk.start("--quiet")
    desk.emit("later")
    wait_until(desk.is_in("later", "waiting"), alive=start)
    stop(start)
    [run] = desk.ids("later")

    done = desk.runs(verb, run, code=130, input="n\n" if verb == "kill" else "")
    assert done.stdout == ""
    assert f"{verb.capitalize()} 1 run? [y/N]" in done.stderr
    assert "aborted" in done.stderr
    dry = desk.runs(verb, run, "--dry-run")
    _, row, total = dry.stdout.splitlines()
    assert (row.split()[0], total, dry.stderr) == (run[:8], f"would {verb} 1 run", "")
    assert desk.interventions("later") == []
    assert "asked " not in desk.runs("show", run).stdout

    told = desk.runs(verb, run, input="y\n")

    assert told.stdout == ("asked to cancel 1 run\n" if verb == "cancel" else "killed 1 run\n")


def test_nothing_to_do_is_no_question(desk: Desk) -> None:
    assert desk.runs("cancel", "--all").stdout == "asked to cancel 0 runs\n"
    assert desk.runs("kill", "--all").stdout == "killed 0 runs\n"
