"""What a run's records say: which steps are over, with what, and what was tried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from runner.plan import Foreach, Parallel, Program, Step, Switch, walk
from runner.records import (
    AttemptBegun,
    AttemptFailed,
    BlockBegun,
    BranchTaken,
    CommandSent,
    Error,
    ErrorCaught,
    EventsTaken,
    Intervention,
    LetIn,
    Record,
    ReplySent,
    RunFailed,
    RunState,
    StepFinished,
    StepState,
    UndoFinished,
    WaitBegun,
)

UNSETTLED = frozenset({"timeout", "internal", "crashed", "cancelled"})
"""Errors of a reply after which the effect may be there all the same."""


def base(key: str) -> str:
    """The id of the step that a record is of, without its rounds."""
    return key.partition("[")[0]


def rounds_of(key: str) -> str:
    """The rounds of a record's id: `[2][0]`, the outermost first."""
    return key[len(base(key)) :]


def _split(rounds: str) -> tuple[str, int]:
    """The rounds around the innermost one, and its number."""
    outer, _, last = rounds.rpartition("[")
    return outer, int(last[:-1])


@dataclass(slots=True)
class Layer:
    """What is seen in one home, in one round of it: `steps` (what did not run is skipped), `vars`, and when its latest
    step ended, which is what `now()` says in the next one, also after a crash."""

    steps: dict[str, dict[str, Any]]
    variables: dict[str, Any]
    last_time: str | None


class History:
    """The folded records of one run. `add` is the only way to change it, for old records and new ones alike.

    Everything is by the records' ids: a step's own, and its rounds (`offer[2]`).
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self.finished: dict[str, StepFinished] = {}
        self.blocks: dict[str, BlockBegun] = {}
        self.branches: dict[str, int | None] = {}
        self.caught: dict[str, ErrorCaught] = {}
        self.attempts: dict[str, list[AttemptFailed]] = {}
        self.undone: dict[str, UndoFinished] = {}
        self.completed: list[str] = []
        """Ids in the order of completion."""
        self.touched: list[str] = []
        """Ids of steps that completed, or that were tried with an unknown result, in the order in which that was so."""
        self.failure: Error | None = None
        """Why the run's own steps ended, once they did."""
        self.cancelled = False
        """They ended because a person said so."""
        self.pivoted = False
        """The point of no return is passed."""
        self.revived_at: str | None = None
        """When a person let the run go on: its timeout counts anew from there."""
        self.let_in_at: str | None = None
        """When it passed the gate of its handler; None if it has none."""
        self.root = Layer(dict.fromkeys(program.homes[""].steps, _SKIPPED), {}, None)
        """What every step sees, those inside a `parallel` or a `foreach` as it was when that began."""
        self.waits: dict[str, WaitBegun] = {}
        self.taken: set[tuple[str, str]] = set()
        """Events that no wait gets any more, as (source, id): the one that began the run, and what some wait got."""
        self.sent: dict[str, CommandSent] = {}
        """The latest command of a step, by the step's id."""
        self.unanswered: dict[str, CommandSent] = {}
        """Commands that timed out, of steps that a person lets try again: they go out again under their ids."""
        self.asked: dict[str, int] = {}
        """How many commands it has sent; one that goes out again under its id counts once."""
        self.reply: ReplySent | None = None
        self._layers: dict[str, Layer] = {}
        self._ends: dict[str, list[str]] = {}
        """When rounds of a loop ended, in this order."""
        self._seen: list[StepFinished | ErrorCaught] = []
        self._open: dict[str, AttemptBegun | CommandSent] = {}
        self._undone_before: frozenset[str] = frozenset()

    def add(self, record: Record) -> None:
        """Fold one record in."""
        if isinstance(record, AttemptBegun | AttemptFailed | BlockBegun | BranchTaken | CommandSent | WaitBegun):
            self._layer_of(record.step_id)  # it is entered
        match record:
            case StepFinished():
                self._finish(record)
            case AttemptBegun():
                self._tried(record.step_id, unknown=record.again or record.step_id in self._open)
                self._open[record.step_id] = record
            case LetIn():
                self.let_in_at = record.at
            case WaitBegun():
                self.waits[record.step_id] = record
            case EventsTaken():
                self.taken.update(record.events)
            case CommandSent():
                self._open[record.step_id] = self.sent[record.step_id] = record
                self.unanswered.pop(record.step_id, None)
                self.asked[record.step_id] = self.asked.get(record.step_id, 0) + record.is_new
            case ReplySent():
                self.reply = record
            case AttemptFailed():
                self.attempts.setdefault(record.step_id, []).append(record)
                self.unanswered.pop(record.step_id, None)
                self._over(record.step_id)
                self._tried(record.step_id, unknown=record.unknown or self._is_unsettled(record.step_id, record.error))
            case BlockBegun():
                self.blocks[record.step_id] = record
            case BranchTaken():
                self.branches[record.step_id] = record.branch
            case ErrorCaught():
                self.caught[record.step_id] = record
                self._see(record)
                self._over(record.step_id)
                self._tried(record.step_id, unknown=record.unknown or self._is_unsettled(record.step_id, record.error))
            case RunFailed():
                self._fail(record)
            case UndoFinished():
                self.undone[record.step_id] = record
                layer = self.root if self.failure is not None else self._layer_of(record.step_id)
                layer.last_time = record.finished_at
                self._over(record.step_id)
            case Intervention():
                self._intervene(record)

    def has_stopped(self, steps: Iterable[Step]) -> bool:
        """Whether a `stop` among these steps, wherever it stands, was reached."""
        reached = {
            base(step_id)
            for step_id, record in self.finished.items()
            if record.action == "stop" and record.state is StepState.COMPLETED
        }
        return bool(reached) and any(step.id in reached for step in walk(steps))

    # --- what expressions see

    def layer(self, home: str, rounds: str) -> Layer:
        """What is seen in a home, in certain rounds: what was seen around it when that began, and its own."""
        if not home:
            return self.root
        layer = self._layers.get(home + rounds)
        if layer is None:
            around, steps = self._around(home, rounds), self._program.homes[home].steps
            layer = self._layers[home + rounds] = Layer(
                {**around.steps, **dict.fromkeys(steps, _SKIPPED)},
                dict(around.variables),
                self._made_room(home, rounds) or around.last_time,
            )
        return layer

    def _made_room(self, home: str, rounds: str) -> str | None:
        """When the round ended that made room for this one; None if it was among the first."""
        loop = self._program.homes[home].loop
        if loop is None:
            return None
        outer, index = _split(rounds)
        ends, number = self._ends.get(loop.id + outer, ()), index - loop.concurrency
        return ends[number] if 0 <= number < len(ends) else None

    def is_entered(self, home: str, rounds: str) -> bool:
        """Whether anything has happened there."""
        return home + rounds in self._layers

    def names(self, home: str, rounds: str) -> dict[str, Any]:
        """The items and the index that are seen there."""
        if not home:
            return {}
        here = self._program.homes[home]
        if here.loop is None:
            return self.names(here.outer, rounds)
        outer, index = _split(rounds)
        items = self.blocks[here.loop.id + outer].items
        return {**self.names(here.outer, outer), here.loop.item: items[index], "index": index}

    def is_inside(self, key: str, home: str, rounds: str) -> bool:
        """Whether a record is of a step in that home, or inside of what stands there."""
        at, its = self._program.every[base(key)].home, rounds_of(key)
        while at and at != home:
            here = self._program.homes[at]
            its = its if here.loop is None else _split(its)[0]
            at = here.outer
        return at == home and its == rounds

    def is_around(self, block: str, key: str) -> bool:
        """Whether a record is of a step inside that block; both by their records' ids."""
        at, its = self._program.every[base(key)].home, rounds_of(key)
        while at:
            here = self._program.homes[at]
            its = its if here.loop is None else _split(its)[0]
            if here.block + its == block:
                return True
            at = here.outer
        return False

    def _around(self, home: str, rounds: str) -> Layer:
        here = self._program.homes[home]
        return self.layer(here.outer, rounds if here.loop is None else _split(rounds)[0])

    def _layer_of(self, key: str) -> Layer:
        return self.layer(self._program.every[base(key)].home, rounds_of(key))

    def _see(self, record: StepFinished | ErrorCaught) -> None:
        layer, step_id = self._layer_of(record.step_id), base(record.step_id)
        self._seen.append(record)
        if isinstance(record, ErrorCaught):
            layer.steps[step_id] = _seen(StepState.FAILED, None, record.error, record.attempts)
            return
        seen = _seen(record.state, record.output, record.error, record.attempts)
        layer.steps[step_id] = seen if record.event is None else {**seen, "event": record.event}
        layer.last_time = record.finished_at
        if record.state is StepState.COMPLETED and record.action == "set":
            layer.variables.update(record.output)
        home = self._program.every[step_id].home
        loop = self._program.homes[home].loop
        if loop is not None and loop.steps[-1].id == step_id:
            outer, _ = _split(rounds_of(record.step_id))
            self._ends.setdefault(loop.id + outer, []).append(record.finished_at)

    # --- folding

    def _finish(self, record: StepFinished) -> None:
        self.finished[record.step_id] = record
        self._see(record)
        self._over(record.step_id)
        if record.state is StepState.COMPLETED:
            self.completed.append(record.step_id)
            self.pivoted = self.pivoted or record.pivot
        done = record.state is StepState.COMPLETED
        unknown = record.unknown or self._is_unsettled(record.step_id, record.error)
        self._tried(record.step_id, unknown=done or unknown)

    def _is_unsettled(self, step_id: str, error: Error | None) -> bool:
        """Whether it is a command, and who did it says itself that it was cut short."""
        return step_id in self.sent and error is not None and error.type in UNSETTLED

    def _fail(self, record: RunFailed) -> None:
        self.failure = record.error
        self.cancelled = record.cancelled
        self._undone_before = frozenset(self.undone)
        for step_id in list(self._open):  # begun before a crash, and never heard of again
            self._over(step_id)
            self._tried(step_id, unknown=True)

    def _over(self, step_id: str) -> None:
        self._open.pop(step_id, None)

    def _tried(self, step_id: str, *, unknown: bool) -> None:
        """Later counts: a step that is tried again and completes was done then."""
        if unknown:
            if step_id in self.touched:
                self.touched.remove(step_id)
            self.touched.append(step_id)

    @property
    def undone_since(self) -> list[UndoFinished]:
        """What was undone since the run failed: not what a `parallel` undid of its losers."""
        return [record for key, record in self.undone.items() if key not in self._undone_before]

    def broken(self, step: Step, rounds: str) -> StepFinished | None:
        """The record of what ended a step's own list there: it failed, or was cancelled, and no catch dealt with that
        to its own end."""
        record = self.finished.get(step.id + rounds)
        if record is None or record.state not in (StepState.FAILED, StepState.CANCELLED):
            return None
        caught = self.caught.get(step.id + rounds)
        if caught is None:
            return record
        inner = (self.broken(each, rounds) for each in step.catches[caught.catch].steps)
        return next((found for found in inner if found is not None), None)

    # --- a person lets the run go on

    def _intervene(self, record: Intervention) -> None:
        if record.action != "retry" or record.anew is not None:
            return
        if record.was is RunState.COMPENSATION_FAILED:
            self._reopen_undoing()
        else:
            self._reopen(record.from_step)
        self.revived_at = record.at

    def _reopen_undoing(self) -> None:
        """What could not be undone is tried again; what was undone stays so."""
        for step_id in [step_id for step_id, record in self.undone.items() if record.state is StepState.FAILED]:
            ended, sent = self.undone.pop(step_id), self.sent.pop(step_id, None)
            if sent is not None and ended.unknown:
                self.unanswered[step_id] = sent
            self.attempts.pop(step_id, None)
        self._reopen_failed_path(self._program.on_failure, "")
        self._see_anew()

    def _reopen(self, from_step: str | None) -> None:
        """The failed step is tried again, or `from_step` and all that stand after it run again."""
        self._forget_all({step.id for step in walk(self._program.on_failure)})
        failure, self.failure, self.cancelled = self.failure, None, False
        for key in [key for key in self.undone if key not in self._undone_before]:
            del self.undone[key]  # nothing was; what was not wanted then may be when it fails again
        if from_step is not None:
            self._reopen_from(base(from_step))
        elif failure is not None:
            self._reopen_failed_path(self._program.steps, "")
        self.pivoted = any(self.finished[step_id].pivot for step_id in self.completed)
        self._see_anew()

    def _reopen_failed_path(self, steps: tuple[Step, ...], rounds: str) -> None:
        """The step that failed, and the blocks around it, which go on where they were."""
        step = next((step for step in steps if self.broken(step, rounds) is not None), None)
        if step is None:
            return
        inner = list(self._children(step, rounds))
        if inner:
            self._unfinish(step.id + rounds)
            for block, its in inner:
                self._reopen_failed_path(block, its)
        else:
            self._forget(step.id + rounds)

    def _children(self, step: Step, rounds: str) -> Iterator[tuple[tuple[Step, ...], str]]:
        """The steps inside that it was at: those of its catch, else those of the branches that it took."""
        key = step.id + rounds
        caught, branch = self.caught.get(key), self.branches.get(key)
        if caught is not None:
            yield step.catches[caught.catch].steps, rounds
        elif isinstance(step, Switch) and branch is not None:
            yield step.branches[branch].steps, rounds
        elif isinstance(step, Parallel) and key in self.blocks:
            yield from ((steps, rounds) for steps in step.branches.values())
        elif isinstance(step, Foreach) and key in self.blocks:
            yield from ((step.steps, f"{rounds}[{index}]") for index in range(len(self.blocks[key].items)))

    def _reopen_from(self, from_step: str) -> None:
        """One inside a `parallel` or a `foreach` stands for the whole block."""
        if from_step not in self._program.every:
            return
        around = [*_around(self._program.steps, from_step), from_step]
        from_step = next(
            step_id
            for step_id in around
            if isinstance(self._program.every[step_id], Parallel | Foreach) or step_id == from_step
        )
        order = [step.id for step in walk(self._program.steps)]
        self._forget_all(set(order[order.index(from_step) :]))
        for step_id in around[: around.index(from_step)]:
            self._unfinish(step_id)

    def _forget_all(self, step_ids: set[str]) -> None:
        """These steps, in every round."""
        kept = (
            self.finished,
            self.attempts,
            self.blocks,
            self.branches,
            self.caught,
            self._open,
            self.sent,
            self.waits,
        )
        for key in {key for known in kept for key in known if base(key) in step_ids}:
            self._forget(key)

    def _see_anew(self) -> None:
        """What expressions see, of what still stands."""
        last_time = self.root.last_time
        self.root = Layer(dict.fromkeys(self._program.homes[""].steps, _SKIPPED), {}, None)
        self._layers.clear()
        self._ends.clear()
        seen, self._seen = self._seen, []
        for record in seen:
            if record in (self.finished.get(record.step_id), self.caught.get(record.step_id)):
                self._see(record)
        self.root.last_time = last_time

    def _unfinish(self, step_id: str) -> None:
        """It is not over; the branch that it took, or the catch, stands."""
        self.finished.pop(step_id, None)
        for ids in (self.completed, self.touched):
            if step_id in ids:
                ids.remove(step_id)

    def _forget(self, step_id: str) -> None:
        ended = self.finished.get(step_id)
        error = ended.error if ended is not None and ended.unknown else None
        if step_id in self.sent and error is not None and error.type == "timeout":  # another error is an answer's
            self.unanswered[step_id] = self.sent[step_id]
        for known in (self.attempts, self.blocks, self.branches, self.caught, self._open, self.sent, self.waits):
            known.pop(step_id, None)
        for undo in self._program.every[base(step_id)].undo:  # of a loser that runs again, and may lose again
            for done in (self.undone, self.attempts, self.sent):
                done.pop(undo.step.id + rounds_of(step_id), None)
        self._unfinish(step_id)


_SKIPPED: dict[str, Any] = {"output": None, "state": "skipped", "error": None, "attempts": 0}


def _seen(state: StepState, output: Any, error: Error | None, attempts: int) -> dict[str, Any]:
    shown = msgspec.structs.asdict(error) if error is not None else None
    return {"output": output, "state": str(state), "error": shown, "attempts": attempts}


def _around(steps: tuple[Step, ...], step_id: str) -> tuple[str, ...]:
    """The ids of the steps that a step stands inside of, outermost first."""
    for step in steps:
        if step.id == step_id:
            return ()
        for block in step.blocks:
            if any(inner.id == step_id for inner in walk(block)):
                return (step.id, *_around(block, step_id))
    return ()
