"""LANGUAGE §2 and §3: a command's handler answers, always, and once for each who asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from textwrap import dedent, indent
from typing import Any

import pytest
from acting import Crash, CrashingStore, Gate, Service, since, undoable
from bench import Bench, Failing

from runner.engine import intake
from runner.engine.run import run_id
from runner.engine.worker import Worker
from runner.errors import EnvelopeError, RetryableError, TerminalError, TransportError
from runner.message import Delivery, Outgoing, Properties, decode_json, encode_json
from runner.ports import Store
from runner.records import ReplySent, RunState
from runner.testing import FlowKit, KitRun
from runner.times import parse_time, rfc3339

HEAD = """\
flow: f
uses: {env: [REGION], secrets: [TOKEN]}
events: {told: {schema: {}}}
commands:
  pay:
    handler: h
    timeout: 10s
    schema: {type: object, required: [amount], properties: {amount: {type: integer}}}
    reply: {type: object, required: [id], properties: {id: {type: string}}}
  ask: {handler: any}
handlers:
"""
RUN = run_id("f.h", "/amqp", "c-1")
NO = TerminalError("card_declined", "no credit", code=51)
BUSY = RetryableError("busy")
REPLY = 'reply: {id: "{{ steps.a.output.what }}"}'


def file(h: str, any_: str = "steps: []") -> str:
    """A flow whose handler `h` does `pay`, and `any` does `ask`, which takes and gives anything."""
    bodies = [f"  {name}:\n{indent(dedent(body).strip(chr(10)), '    ')}\n" for name, body in (("h", h), ("any", any_))]
    return HEAD + "".join(bodies)


def doing(h: str, service: Service | None = None, **options: Any) -> FlowKit:
    """The kit for a handler `h` of this body."""
    options.setdefault("env", {"REGION": "north"})
    options.setdefault("secrets", {"TOKEN": "s3cret"})
    return FlowKit(file(h), (service or Service()).handlers(), **options)


async def called(kit: FlowKit, **options: Any) -> KitRun:
    run = await kit.call("pay", {"amount": 42}, ident="c-1", **options)
    assert run is not None
    return run


async def reply_of(body: str, service: Service | None = None, **options: Any) -> ReplySent:
    """What the handler of this body answers in the end."""
    async with doing(body, service) as kit:
        await called(kit, **options)
        done = await kit.finish(RUN)
    assert done.reply is not None
    return done.reply


async def outbox(kit: FlowKit) -> list[Outgoing]:
    return [row.outgoing for row in await kit.store.outbox(100)]


# --- what it sees, and what it answers


async def test_the_handler_sees_the_request_as_command() -> None:
    body = """
        steps:
          - {id: a, use: act, with: {what: seen, all: "{{ command }}", m: "{{ meta.id }}",
               t: "{{ meta.type }}", region: "{{ env.REGION }}"}, when: command.amount == 42}
        reply: {id: "{{ command.amount }} {{ meta.type }} {{ run.id }} {{ env.REGION }}"}
        """
    service = Service()
    reply = await reply_of(body, service)
    assert service.calls[0].fields == {"all": {"amount": 42}, "m": "c-1", "t": "pay", "region": "north"}
    assert reply.result == {"id": f"42 pay {RUN} north"}


@pytest.mark.parametrize(
    ("reply", "result"),
    [
        pytest.param(
            'reply: {id: "{{ steps.a.output.what }}", n: 1, l: ["{{ vars.v }}"]}', {"id": "a", "n": 1, "l": [7]}
        ),
        pytest.param('reply: "{{ steps.a.output }}"', {"what": "a", "id": "x"}, id="one template"),
        pytest.param('reply: {id: x, none: "{{ steps.b.output }}", gone: "{{ omit }}"}', {"id": "x", "none": None}),
    ],
)
async def test_the_reply_is_a_mapping_of_templates_or_one(reply: str, result: Any) -> None:
    body = f"""
        steps:
          - {{id: a, use: act, with: {{what: a, id: x}}}}
          - {{set: {{v: 7}}}}
          - {{id: b, use: act, with: {{what: b}}, when: "false"}}
        {reply}
        """
    assert (await reply_of(body)).result == result


async def test_a_handler_that_says_no_reply_answers_null() -> None:
    async with doing(f"steps: [{undoable('a')}]\n{REPLY}") as kit:
        run = await kit.call("ask", None)
        assert run is not None
        assert run.reply is not None
        assert (run.reply.result, run.reply.error) == (None, None)
        [message] = await outbox(kit)
        assert message.body == b"null"


async def test_the_reply_is_taken_also_after_stop() -> None:
    body = f"steps: [{undoable('a')}, {{stop: true}}, {undoable('b')}]\n{REPLY}"
    service = Service()
    assert (await reply_of(body, service)).result == {"id": "a"}
    assert service.done == ["a"]


async def test_a_reply_goes_to_the_callers_queue_under_the_commands_own_id() -> None:
    async with doing(f"steps: [{undoable('a')}]\n{REPLY}") as kit:
        await called(kit, reply_to="answers")
        [message] = await outbox(kit)
    properties = message.properties
    assert (message.exchange, message.routing_key, decode_json(message.body)) == ("", "answers", {"id": "a"})
    assert (properties.correlation_id, properties.type, dict(properties.headers)) == ("c-1", "pay.reply", {})
    assert not message.mandatory, "whom nobody waits for any more gets none"


async def test_without_reply_to_there_is_no_reply() -> None:
    for answers, state in ([{}], RunState.COMPLETED), ([NO], RunState.FAILED):
        async with doing("steps: [{id: a, use: act, with: {what: a}}]\nreply: {id: x}", Service({"a": answers})) as kit:
            assert (await called(kit, reply_to=None)).state is state
            assert await outbox(kit) == []


# --- what it answers when it fails


async def test_a_failed_run_answers_with_its_error_once_all_is_undone() -> None:
    service = Service({"b": [NO], "undo_a": [BUSY, {}]})
    body = f"""
        steps: [{undoable("a")}, {undoable("b")}]
        {REPLY}
        on_failure: [{{use: act, with: {{what: report}}}}]
        """
    async with doing(body, service) as kit:
        undoing = await called(kit)
        assert (undoing.state, undoing.reply, await outbox(kit)) == (RunState.COMPENSATING, None, [])
        done = await kit.finish(RUN)
        [message] = await outbox(kit)
    assert (done.state, service.done[-1]) == (RunState.COMPENSATED, "report")
    assert dict(message.properties.headers) == {"flowrun-status": "failed"}
    assert decode_json(message.body) == {
        "type": "card_declined",
        "message": "no credit",
        "retryable": False,
        "details": {"code": 51},
    }


async def test_where_the_undoing_fails_too_the_caller_hears_the_first_error() -> None:
    service = Service({"b": [NO], "undo_a": [TerminalError("stuck")]})
    reply = await reply_of(f"steps: [{undoable('a')}, {undoable('b')}]\n{REPLY}", service)
    assert reply.error is not None
    assert reply.error.type == "card_declined"


@pytest.mark.parametrize(
    "reply",
    [
        'reply: {id: "{{ command.k | default(7) }}"}',
        'reply: "{{ command.k | default({}) }}"',
        'reply: "{{ command.order | default(0) }}"',
    ],
)
async def test_a_reply_that_does_not_fit_fails_the_run_which_undoes_what_it_did(reply: str) -> None:
    service = Service()
    body = f"steps: [{undoable('a')}]\non_failure: [{{use: act, with: {{what: report}}}}]\n{reply}"
    async with doing(body, service) as kit:
        await kit.call("pay", {"amount": 42, "order": "x"}, ident="c-1")
        done = await kit.finish(RUN)
    assert (done.state, service.done) == (RunState.COMPENSATED, ["a", "undo_a", "report"])
    assert done.reply is not None
    assert done.reply.error is not None
    assert done.reply.error.type == "invalid_output"
    assert "the reply of pay does not fit its schema" in done.reply.error.message


async def test_a_reply_that_cannot_be_told_fails_the_run_too() -> None:
    service = Service()
    reply = await reply_of(f"steps: [{undoable('a')}]\nreply: {{id: '{{{{ (command.k | default(0)).id }}}}'}}", service)
    assert reply.error is not None
    assert (reply.error.type, service.done) == ("expression", ["a", "undo_a"])


async def test_secrets_are_masked_in_the_error_that_the_caller_gets() -> None:
    service = Service({"a": [TerminalError("denied", "with s3cret", token="s3cret")]})
    reply = await reply_of(f"steps: [{undoable('a')}]\n{REPLY}", service)
    assert reply.error is not None
    assert (reply.error.message, reply.error.details) == ("with ***", {"token": "***"})


@pytest.mark.parametrize(("how", "undone"), [("kill", []), ("cancel", ["undo_a"])])
async def test_a_run_that_a_person_ends_answers_cancelled(how: str, undone: list[str]) -> None:
    service = Service({"b": [BUSY]})
    async with doing(f"steps: [{undoable('a')}, {undoable('b')}]\n{REPLY}", service) as kit:
        await called(kit)
        done = await getattr(kit, how)(RUN, "no more")
        [message] = await outbox(kit)
    assert service.done == ["a", "b", *undone]
    assert done.reply.error.type == "cancelled"
    assert (decode_json(message.body)["type"], message.properties.correlation_id) == ("cancelled", "c-1")


# --- the deadline


async def test_a_command_is_not_begun_from_its_deadline_on() -> None:
    async with doing(f"steps: [{undoable('a')}]\n{REPLY}") as kit:
        for late_s in (0, 1):
            with pytest.raises(EnvelopeError, match="its caller waits no longer") as caught:
                await called(kit, expires_at=kit.clock.now() - timedelta(seconds=late_s))
            assert intake.refusal(caught.value).type == "timeout"
        assert not await kit.store.known(RUN)
        await called(kit, expires_at=kit.clock.now() + timedelta(milliseconds=1))


@pytest.mark.parametrize(("own", "limit_s"), [("", 10.0), ("timeout: 4s", 4.0), ("timeout: 1h", 10.0)])
async def test_a_deadline_that_passes_midway_fails_the_run_which_undoes_itself(own: str, limit_s: float) -> None:
    service = Service({"b": [BUSY]})
    patient = "retry: {max_attempts: unlimited, delay: 6s, jitter: {from: 0s, to: 0s}, backoff: constant}"
    async with doing(f"{own}\nsteps: [{undoable('a')}, {undoable('b', patient)}]\n{REPLY}", service) as kit:
        begun_at = kit.clock.now()
        waiting = await called(kit, expires_at=begun_at + timedelta(seconds=10))
        assert since(kit.clock, waiting) == min(6.0, limit_s)
        done = await kit.finish(RUN)
        assert kit.clock.now() == begun_at + timedelta(seconds=limit_s)
    assert (done.state, service.done[-1]) == (RunState.COMPENSATED, "undo_a")
    assert done.reply is not None
    assert done.reply.error is not None
    assert (done.reply.error.type, done.reply.error.retryable) == ("timeout", True)
    expired = limit_s == 10.0
    assert done.reply.error.message == ("its caller waits no longer" if expired else "the run took longer than 4 s")


async def test_the_deadline_does_not_hurry_the_undoing() -> None:
    service = Service({"b": [NO], "undo_a": [BUSY, BUSY, {}]})
    slow = "retry: {delay: 1h, max_delay: 1h, jitter: none}"
    async with doing(f"steps: [{undoable('a', undo=slow)}, {undoable('b')}]\n{REPLY}", service) as kit:
        await called(kit, expires_at=kit.clock.now() + timedelta(seconds=10))
        assert (await kit.finish(RUN)).state is RunState.COMPENSATED


async def test_what_a_person_begins_anew_is_not_bound_by_the_deadline_that_has_passed() -> None:
    service = Service({"b": [NO, {}]})
    async with doing(f"steps: [{undoable('a')}, {undoable('b')}]\n{REPLY}", service) as kit:
        await called(kit, expires_at=kit.clock.now() + timedelta(seconds=10))
        kit.clock.advance(3600)
        anew = await kit.retry(RUN)
        assert anew.state is RunState.COMPLETED
        assert [m.properties.headers.get("flowrun-status") for m in await outbox(kit)] == ["failed", None]


async def test_nor_is_what_goes_on_where_it_failed() -> None:
    service = Service({"a": [NO, {"what": "a"}]})
    async with doing(f"steps: [{undoable('a')}]\n{REPLY}", service) as kit:
        await called(kit, expires_at=kit.clock.now() + timedelta(seconds=10))
        kit.clock.advance(3600)
        again = await kit.retry(RUN)
        assert again.state is RunState.COMPLETED
        assert again.reply is not None
        assert again.reply.result == {"id": "a"}


# --- crashes


@pytest.mark.parametrize("answers", [{}, {"b": [NO]}], ids=["a result", "an error"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_crash_at_any_commit_sends_one_reply(answers: dict[str, list[Any]], moment: str) -> None:
    async def told(*at: tuple[int, str]) -> tuple[list[bytes], int]:
        stores: list[CrashingStore] = []

        def crashing(store: Store) -> Store:
            stores.append(CrashingStore(store, set(at)))
            return stores[0]  # type: ignore[return-value]

        body = f"steps: [{undoable('a')}, {undoable('b')}]\n{REPLY}"
        async with doing(body, Service(answers), store=crashing) as kit:
            for _ in range(9):
                try:
                    await (kit.finish(RUN) if await kit.store.known(RUN) else called(kit))
                except Crash:
                    continue
            return [message.body for message in await outbox(kit)], stores[0].count

    calm, commits = await told()
    assert len(calm) == 1
    for n in range(1, commits + 1):
        assert (await told((n, moment)))[0] == calm


# --- flows that call each other

SHOP = """
flow: shop
events: {order.placed: {external: true}}
routes: [{on: order.placed, to: sell}]
handlers:
  sell:
    steps:
      - {id: a, use: act, with: {what: a}, compensate: {use: act, with: {what: undo_a}}}
      - id: charge
        command: payment.charge
        with: {order: "{{ event.id }}", amount: 7}
        compensate: {command: payment.refund, with: {order: "{{ event.id }}"}, if: attempted}
      - {use: act, with: {what: "{{ steps.charge.output.charge }}"}}
      - {id: last, use: act, with: {what: last}}
"""
BANK = """
flow: bank
commands:
  payment.charge: {handler: charge, timeout: 10s, reply: {type: object, required: [charge]}}
  payment.refund: {handler: refund, timeout: 10s}
  limit.check: {handler: check, timeout: 2s}
handlers:
  charge:
    steps:
      - {command: limit.check, with: {amount: "{{ command.amount }}"}}
      - {id: pay, use: act, with: {what: pay}, compensate: {use: act, with: {what: undo_pay}}}
    reply: {charge: "paid {{ command.order }}"}
  refund: {steps: [{use: act, with: {what: back}}]}
  check: {steps: [{use: act, with: {what: check}, retry: {max_attempts: 2, delay: 500ms}}]}
"""


def two_flows(service: Service) -> FlowKit:
    return FlowKit({"flows/shop.yaml": SHOP, "flows/bank.yaml": BANK}, service.handlers())


async def sold(service: Service, kit: FlowKit) -> KitRun:
    begun = await kit.send("order.placed", {"id": "A-1"}, handler="shop.sell", ident="m-1")
    assert begun is not None
    return await kit.finish(begun.stored.started.run_id)


async def test_a_saga_over_flows_that_call_each_other_completes() -> None:
    service = Service({"check": [BUSY, {}]})
    async with two_flows(service) as kit:
        done = await sold(service, kit)
        assert [sent.command for sent in kit.sent] == ["payment.charge", "limit.check"]
        assert kit.sent[0].payload == {"order": "A-1", "amount": 7}
        runs = {run.handler: run for run in await kit.store.runs(limit=10)}
        chain = [
            (await kit.look(runs[h].id)).stored.started.trigger for h in ("shop.sell", "bank.charge", "bank.check")
        ]
        assert {link.correlation_id for link in chain} == {chain[0].id}
        assert [link.causation_id for link in chain] == [None, *[link.id for link in chain[:-1]]]
    assert done.state is RunState.COMPLETED
    assert service.done == ["a", "check", "check", "pay", "paid A-1", "last"]


async def test_a_saga_that_fails_is_undone_by_a_command() -> None:
    service = Service({"last": [NO]})
    async with two_flows(service) as kit:
        done = await sold(service, kit)
        assert [sent.command for sent in kit.sent] == ["payment.charge", "limit.check", "payment.refund"]
    assert (done.state, service.done[-2:]) == (RunState.COMPENSATED, ["back", "undo_a"])
    assert [(undo.target, undo.output) for undo in done.undone] == [
        ("payment.refund", None),
        ("act", {"what": "undo_a"}),
    ]


async def test_an_error_goes_up_through_all_who_asked_and_each_undoes_its_own() -> None:
    service = Service({"check": [NO]})
    async with two_flows(service) as kit:
        done = await sold(service, kit)
        states = {run.handler: str(run.state) for run in await kit.store.runs(limit=10)}
    assert done.stored.error is not None
    assert (done.stored.error.type, done.stored.error.step) == ("card_declined", "charge")
    assert states == {"shop.sell": "compensated", "bank.charge": "failed", "bank.check": "failed"}
    assert service.done == ["a", "check", "undo_a"], "a refusal is known: attempted does not hold"


async def test_a_callee_that_is_too_late_undoes_itself_and_its_caller_does_not_wait_for_it() -> None:
    service = Service({"pay": [RetryableError("busy", retry_after_s=60)]})
    async with two_flows(service) as kit:
        done = await sold(service, kit)
        callee = next(run for run in await kit.store.runs(limit=10) if run.handler == "bank.charge")
        assert (await kit.finish(callee.id)).state is RunState.FAILED
    assert done.stored.error is not None
    assert (done.state, done.stored.error.type) == (RunState.COMPENSATED, "timeout")
    assert service.done == ["a", "check", "pay", "back", "undo_a"], "it is undone by the order's id, done or not"


# --- in a worker: those who ask the same


@dataclass
class Desk:
    """A worker for these handlers, and a caller's queue."""

    h: str
    service: Service = field(default_factory=Service)
    replies: list[Delivery] = field(default_factory=list)

    def __post_init__(self) -> None:
        text = file(self.h).replace("uses: {env: [REGION], secrets: [TOKEN]}\n", "")
        self.bench = Bench(text, self.service.handlers())

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Worker]:
        async with self.bench.working() as worker, self.open_queues():
            yield worker

    @asynccontextmanager
    async def open_queues(self) -> AsyncIterator[None]:
        transport, deliver = self.bench.transport, self.replies.append
        async with transport.private_queue("mine", deliver), transport.private_queue("other", deliver):
            yield

    async def ask(self, ident: str | None, payload: Any = None, **how: Any) -> None:
        """Send the command `pay`, as a program that is not flowrun does."""
        how.setdefault("reply_to", "mine")
        how.setdefault("correlation_id", ident)
        expires_at = how.pop("expires_at", None)
        headers = {} if expires_at is None else {"ce-expirytime": rfc3339(expires_at)}
        body = payload if isinstance(payload, bytes) else encode_json({"amount": 42, "k": "k-1", **(payload or {})})
        message = Outgoing(
            exchange="p.commands",
            routing_key="pay",
            body=body,
            properties=Properties(message_id=ident, headers=headers, **how),
            mandatory=True,
        )
        assert list(await self.bench.transport.publish([message])) == [None]

    async def answers(self, count: int) -> list[tuple[str | None, Any]]:
        """Correlation id and result, or the error's type, of the first replies."""
        async with asyncio.timeout(20):
            while len(self.replies) < count:  # noqa: ASYNC110 a poll
                await asyncio.sleep(0)
        assert len(self.replies) == count
        return [(reply.properties.correlation_id, self.said(reply)) for reply in self.replies]

    def said(self, reply: Delivery) -> Any:
        failed = reply.properties.headers.get("flowrun-status") == "failed"
        body = decode_json(reply.body)
        return body["type"] if failed else body


PLAIN = "steps: [{id: a, use: act, with: {what: a}}]\nreply: {id: '{{ uuid() }}'}"
KEYED = 'idempotency: {key: "{{ command.k }}", ttl: 1h}\n' + PLAIN


async def test_the_same_command_again_is_answered_alike_and_done_once() -> None:
    desk = Desk(PLAIN)
    async with desk.open() as worker:
        for n in range(1, 4):
            await desk.ask("c-1")
            answers = await desk.answers(n)
        assert len({str(answer) for answer in answers}) == 1
        assert (worker.counts.begun, worker.counts.duplicates) == (1, 2)
    assert desk.service.done == ["a"]


async def test_so_is_one_that_comes_while_the_first_is_under_way_from_wherever_it_comes() -> None:
    gate = Gate({"what": "a"})
    desk = Desk(PLAIN.replace("[{id: a", "[{use: act, with: {what: before}}, {id: a"), Service({"a": [gate]}))
    async with desk.open() as worker:
        await desk.ask("c-1")
        await gate.entered.wait()
        await desk.ask("c-1", reply_to="other")
        await desk.ask("c-1", correlation_id="my-own")
        async with asyncio.timeout(20):
            while worker.counts.duplicates < 2:  # noqa: ASYNC110 a poll
                await asyncio.sleep(0)
        assert desk.replies == []
        gate.opened.set()
        answers = await desk.answers(3)
        assert sorted(str(ident) for ident, _ in answers) == ["c-1", "c-1", "my-own"]
        assert sorted(reply.queue for reply in desk.replies) == ["mine", "mine", "other"]
        assert len({str(result) for _, result in answers}) == 1
    assert desk.service.done == ["before", "a"]


async def test_a_failure_is_answered_alike_too() -> None:
    desk = Desk(PLAIN, Service({"a": [NO]}))
    async with desk.open():
        await desk.ask("c-1")
        await desk.answers(1)
        await desk.ask("c-1")
        assert await desk.answers(2) == [("c-1", "card_declined")] * 2
    assert desk.service.done == ["a"]


async def test_of_commands_with_one_key_the_first_is_done_and_each_caller_answered() -> None:
    desk = Desk(KEYED)
    async with desk.open():
        for n in range(4):
            await desk.ask(f"c-{n}")
        answers = dict(await desk.answers(4))
    assert set(answers) == {"c-0", "c-1", "c-2", "c-3"}
    assert len({str(result) for result in answers.values()}) == 1
    assert desk.service.done == ["a"]


async def test_unless_the_first_failed() -> None:
    desk = Desk(KEYED, Service({"a": [NO, {}]}))
    async with desk.open():
        await desk.ask("c-1")
        assert await desk.answers(1) == [("c-1", "card_declined")]
        await desk.ask("c-2")
        assert (await desk.answers(2))[1][1].keys() == {"id"}
    assert desk.service.done == ["a", "a"]


async def test_on_duplicate_fail_refuses_the_later_one() -> None:
    desk = Desk(KEYED.replace("ttl: 1h", "on_duplicate: fail"))
    async with desk.open():
        await desk.ask("c-1")
        await desk.answers(1)
        await desk.ask("c-2")
        assert (await desk.answers(2))[1] == ("c-2", "duplicate")
        assert await desk.bench.store.dead_letters(limit=9) == []


@pytest.mark.parametrize("body", [b"{", b'{"amount": "much"}', b"[]", b""])
async def test_what_cannot_begin_is_answered_at_once_and_is_no_dead_letter(body: bytes) -> None:
    desk = Desk(PLAIN)
    async with desk.open() as worker:
        await desk.ask("c-1", body)
        assert await desk.answers(1) == [("c-1", "invalid_input")]
        await desk.bench.until_idle(worker)
        assert await desk.bench.store.dead_letters(limit=9) == []
        assert await desk.bench.store.runs(limit=9) == []


async def test_what_cannot_begin_and_has_nobody_to_be_told_is_a_dead_letter() -> None:
    desk = Desk(PLAIN)
    async with desk.open() as worker:
        await desk.ask("c-1", b"{", reply_to=None)
        async with asyncio.timeout(20):
            while worker.counts.dead_letters == 0:  # noqa: ASYNC110 a poll
                await asyncio.sleep(0)
        [letter] = await desk.bench.store.dead_letters(limit=9)
        assert (letter.reason, letter.handler, letter.message_id) == ("invalid_json", "f.h", "c-1")


async def test_a_key_that_cannot_be_told_is_answered_with_the_expressions_error() -> None:
    desk = Desk(KEYED.replace("command.k", "command.order.id"))
    async with desk.open():
        await desk.ask("c-1")
        assert await desk.answers(1) == [("c-1", "expression")]


async def test_a_command_that_comes_too_late_is_answered_and_not_begun() -> None:
    desk = Desk(PLAIN)
    async with desk.open():
        await desk.ask("c-1", expires_at=datetime.now(UTC) - timedelta(seconds=1))
        assert await desk.answers(1) == [("c-1", "timeout")]
    assert desk.service.done == []


async def test_and_the_same_one_again_with_a_new_deadline_is_done() -> None:
    desk = Desk(PLAIN)
    async with desk.open():
        await desk.ask("c-1", expires_at=datetime.now(UTC) - timedelta(seconds=1))
        await desk.answers(1)
        await desk.ask("c-1", expires_at=datetime.now(UTC) + timedelta(hours=1))
        assert (await desk.answers(2))[1][1].keys() == {"id"}
    assert desk.service.done == ["a"]


async def test_the_correlation_id_serves_as_id_where_there_is_no_other() -> None:
    desk = Desk(PLAIN)
    async with desk.open():
        await desk.ask(None, correlation_id="only")
        await desk.answers(1)
        await desk.ask(None, correlation_id="only")
        first, second = await desk.answers(2)
    assert first == second
    assert desk.service.done == ["a"]


async def test_while_the_broker_is_away_a_reply_that_waits_for_it_keeps_no_run_waiting() -> None:
    desk = Desk(PLAIN, Service({"a": [{}, BUSY, {}]}))
    away = Failing(desk.bench.transport, "publish", TransportError("away"), times=0)
    async with desk.bench.working(transport=lambda _: away), desk.open_queues():
        await desk.ask("c-1")
        await desk.answers(1)
        away.left = 10**6
        await desk.ask("c-1")
        async with asyncio.timeout(20):
            while away.left == 10**6:  # noqa: ASYNC110 a poll
                await asyncio.sleep(0)
            await desk.ask("c-2")
            while len(await desk.bench.store.runs(limit=9, state="completed")) < 2:  # noqa: ASYNC110 a poll
                await asyncio.sleep(0)
        away.left = 0
        assert sorted(str(ident) for ident, _ in await desk.answers(3)) == ["c-1", "c-1", "c-2"]


ASKING = """
flow: f
events: {go: {external: true}}
commands: {pay: {external: true, timeout: 200ms}}
routes: [{on: go, to: h}]
handlers:
  h:
    steps: [{id: pay, command: pay, retry: {max_attempts: 50, delay: 50ms, jitter: none, backoff: constant}}]
"""


async def test_that_a_command_came_too_late_does_not_hide_the_answer_to_the_same_one_that_came_in_time() -> None:
    """A handler that was down finds both in its queue. Were the first answer the caller's, it would send a new
    command, under a new id, and both would be done."""
    got: list[Delivery] = []
    bench = Bench(ASKING, [])

    def reply(command: Delivery, body: Any, **headers: str) -> Outgoing:
        properties = Properties(correlation_id=command.properties.correlation_id, headers=headers)
        return Outgoing(exchange="", routing_key="p.replies", body=encode_json(body), properties=properties)

    async with bench.working() as worker, bench.transport.private_queue("theirs", got.append):
        await bench.file.write(
            lambda c: c.execute("INSERT INTO broker_bindings VALUES ('p.commands', 'theirs', 'pay')")
        )
        await bench.send("m-1", event="go")
        async with asyncio.timeout(20):
            while len(got) < 2:  # noqa: ASYNC110 a poll
                await asyncio.sleep(0.01)
        fault = EnvelopeError("timeout", "its caller waits no longer")
        refused = intake.refusal(fault)
        shown = {name: getattr(refused, name) for name in ("type", "message", "retryable", "details")}
        await bench.transport.publish([reply(got[0], shown, **{"flowrun-status": "failed"}), reply(got[1], "done")])
        await bench.until_all_done(worker, 1)
    assert len({command.properties.message_id for command in got}) == 1
    assert parse_time(got[0].properties.headers["ce-expirytime"]) < parse_time(
        got[1].properties.headers["ce-expirytime"]
    )


@pytest.mark.parametrize(
    ("properties", "body", "reason"),
    [
        (Properties(), b"{}", "bad_envelope"),
        (Properties(correlation_id="nobodys"), b"{}", "unknown_reply"),
        (Properties(correlation_id="c-1"), b"{", "invalid_json"),
        (Properties(correlation_id="c-1", headers={"flowrun-status": "failed"}), b"[]", "bad_envelope"),
        (Properties(correlation_id="c-1", headers={"flowrun-status": "failed"}), b'{"message": "x"}', "bad_envelope"),
    ],
)
async def test_a_reply_that_is_nobodys_or_none_is_a_dead_letter_that_may_be_given_to_its_queue_again(
    properties: Properties, body: bytes, reason: str
) -> None:
    bench = Bench(ASKING, [])
    async with bench.working() as worker:
        reply = Outgoing(exchange="", routing_key="p.replies", body=body, properties=properties, mandatory=True)
        assert list(await bench.transport.publish([reply])) == [None]
        for count in (1, 2):
            async with asyncio.timeout(20):
                while worker.counts.dead_letters < count:  # noqa: ASYNC110 a poll
                    await asyncio.sleep(0)
            letter = (await bench.store.dead_letters(limit=9))[0]
            assert (letter.reason, letter.body, letter.correlation_id) == (reason, body, properties.correlation_id)
            assert list(await bench.transport.publish([intake.second_chance(letter, "p")])) == [None]
