"""LANGUAGE §4: what each step does, and its output."""

from __future__ import annotations

import uuid

import pytest
from acting import Service, run

from runner.message import decode_json
from runner.records import RunState, StepState

COMPLETED, FAILED = RunState.COMPLETED, RunState.FAILED


# --- use


async def test_use_calls_the_plugin_and_its_output_is_what_that_returns() -> None:
    done = await run('steps: [{id: a, use: act, with: {what: a, n: "{{ event.n + 1 }}"}}]', {"n": 1})
    assert done.state is COMPLETED
    assert done.steps["a"].output == {"what": "a", "n": 2}


async def test_later_steps_see_the_outputs_of_earlier_ones() -> None:
    service = Service({"a": [{"id": 7}]})
    await run(
        """
        steps:
          - {id: a, use: act, with: {what: a}}
          - {use: act, with: {what: b, of: "{{ steps.a.output.id }}", n: "{{ steps.a.attempts }}",
               s: "{{ steps.a.state }}"}}
        """,
        None, service,
    )  # fmt: skip
    assert service.calls[1].fields == {"of": 7, "n": 1, "s": "completed"}


async def test_with_may_be_one_template() -> None:
    service = Service()
    await run("steps: [{use: act, with: \"{{ event | merge({'what': 'a'}) }}\"}]", {"x": [1]}, service)
    assert service.calls[0].fields == {"x": [1]}


async def test_a_whole_with_that_is_no_object_is_invalid_input() -> None:
    done = await run('steps: [{id: a, use: act, with: "{{ event.x }}"}]', {"x": [1]})
    assert done.state is FAILED
    assert done.stored.error is not None
    assert done.stored.error.type == "invalid_input"


async def test_values_keep_their_types_and_texts_mix() -> None:
    service = Service()
    await run(
        """
        steps:
          - use: act
            with: {what: a, n: " {{ event.n }} ", text: "n={{ event.n }} l={{ event.l }} s={{ event.s }}",
                 deep: [{x: "{{ event.l }}"}]}
        """,
        {"n": 1.5, "l": [1, None], "s": "q"}, service,
    )  # fmt: skip
    assert service.calls[0].fields == {"n": 1.5, "text": "n=1.5 l=[1,null] s=q", "deep": [{"x": [1, None]}]}


async def test_a_key_that_is_omit_is_left_out() -> None:
    service = Service()
    await run(
        'steps: [{use: act, with: {what: a, email: "{{ event.email | default(omit) }}", deep: {x: "{{ omit }}"}}}]',
        None, service,
    )  # fmt: skip
    assert service.calls[0].fields == {"deep": {}}


async def test_env_and_secrets_are_seen_in_steps() -> None:
    service = Service()
    await run('steps: [{use: act, with: {what: a, r: "{{ env.REGION }}", t: "{{ secrets.TOKEN }}"}}]', None, service)
    assert service.calls[0].fields == {"r": "north", "t": "s3cret"}


async def test_run_and_meta_are_seen_in_steps() -> None:
    service = Service()
    body = 'steps: [{use: act, with: {what: a, run: "{{ run }}", meta: "{{ meta }}", at: "{{ meta.time }}"}}]'
    async with service.kit(body) as kit:
        done = await kit.send("go", {}, ident="m-1")
    assert done is not None
    fields = service.calls[0].fields
    assert fields["run"] == {"id": done.stored.started.run_id, "started_at": "2026-01-01T00:00:00.000Z"}
    assert fields["meta"] == {
        "id": "m-1", "type": "go", "source": "/amqp", "subject": None, "time": "2026-01-01T00:00:00.000Z",
        "correlation_id": "m-1", "causation_id": None,
    }  # fmt: skip


async def test_handler_is_told_run_step_attempt_and_a_key_of_its_own() -> None:
    service = Service()
    done = await run("steps: [{id: a, use: act, with: {what: a}}, {id: b, use: act, with: {what: b}}]", None, service)
    a, b = service.calls
    assert a.key != b.key
    assert done.stored.started.run_id in a.key
    assert a.attempt == 1


# --- ids


async def test_steps_without_an_id_are_called_by_their_place() -> None:
    done = await run(
        """
        steps:
          - {use: act, with: {what: a}}
          - {id: named, use: act, with: {what: b}}
          - switch: [{when: "false", do: [{stop: true}]}, {when: "true", do: [{set: {x: 1}}, {set: {x: 2}}]}]
          - {use: act, with: {what: c, of: "{{ steps['1'].output.what }}"}}
        """
    )
    assert list(done.steps) == ["1", "named", "3.2.do.1", "3.2.do.2", "3", "4"]
    assert done.steps["4"].output["of"] == "a"


# --- emit


async def test_emit_publishes_the_event_and_its_output_is_the_id() -> None:
    async with Service().kit('steps: [{id: e, emit: counted, with: {n: "{{ event.n }}"}}]') as kit:
        done = await kit.send("go", {"n": 5}, ident="cause")
        outbox = await kit.store.outbox(10)
    assert done is not None
    assert done.emitted == (("counted", {"n": 5}),)
    message = outbox[0].outgoing
    headers = message.properties.headers
    assert (message.exchange, message.routing_key, decode_json(message.body)) == ("test.events", "counted", {"n": 5})
    assert done.steps["e"].output == {"id": headers["ce-id"]}
    assert uuid.UUID(headers["ce-id"]).version == 7
    assert headers["ce-specversion"] == "1.0"
    assert headers["ce-source"] == "/flowrun/test/f"
    assert headers["ce-type"] == "counted"
    assert headers["ce-subject"] == "n/5"
    assert headers["ce-time"] == "2026-01-01T00:00:00.000Z"
    assert headers["ce-correlationid"] == headers["ce-causationid"] == "cause"
    assert (message.properties.message_id, message.properties.type) == (headers["ce-id"], "counted")
    assert (message.properties.content_type, message.properties.app_id) == ("application/json", "flowrun/test")


async def test_emit_may_send_the_whole_event_on() -> None:
    done = await run('steps: [{emit: told, with: "{{ event }}"}]', {"a": [1]})
    assert done.emitted == (("told", {"a": [1]}),)


async def test_an_emitted_event_stays_a_fact_when_the_run_fails() -> None:
    done = await run("steps: [{emit: told}, {fail: {type: no, message: no}}]")
    assert (done.state, done.emitted) == (FAILED, (("told", {}),))


@pytest.mark.parametrize(("n", "subject"), [(3, "3"), ("x", "x"), (1.5, "1.5")])
async def test_a_subject_that_is_a_number_becomes_text(n: object, subject: str) -> None:
    async with Service().kit('steps: [{emit: numbered, with: "{{ event }}"}]') as kit:
        await kit.send("go", {"n": n})
        assert (await kit.store.outbox(1))[0].outgoing.properties.headers["ce-subject"] == subject


@pytest.mark.parametrize("n", [None, [], {}, True])
async def test_a_subject_that_is_no_text_is_an_expression_error(n: object) -> None:
    done = await run('steps: [{emit: numbered, with: "{{ event }}"}]', {"n": n})
    assert done.stored.error is not None
    assert done.stored.error.type == "expression"


# --- set


async def test_set_sets_vars_and_its_output_is_the_values() -> None:
    done = await run(
        """
        steps:
          - {id: one, set: {a: 1, b: "{{ event.n }}"}}
          - {id: two, set: {a: "{{ vars.a + vars.b }}"}}
          - {id: see, use: act, with: {what: see, vars: "{{ vars }}"}}
        """,
        {"n": 5},
    )
    assert done.steps["one"].output == {"a": 1, "b": 5}
    assert done.steps["see"].output["vars"] == {"a": 6, "b": 5}


async def test_set_inside_a_switch_and_a_catch_holds_outside() -> None:
    service = Service()
    service.fails("a")
    done = await run(
        """
        steps:
          - switch: [{when: "true", do: [{set: {x: in_switch}}]}]
          - {use: act, with: {what: a}, catch: [{do: [{set: {y: in_catch}}]}]}
          - {id: see, use: act, with: {what: see, x: "{{ vars.x }}", y: "{{ vars.y }}"}}
        """,
        None, service,
    )  # fmt: skip
    assert done.steps["see"].output == {"what": "see", "x": "in_switch", "y": "in_catch"}


async def test_what_was_read_of_vars_does_not_change_with_them() -> None:
    done = await run(
        """
        steps:
          - {id: one, set: {a: 1, all: "{{ vars }}"}}
          - {id: two, set: {b: 2, all: "{{ vars }}"}}
          - {set: {c: 3}}
        """
    )
    assert done.state is COMPLETED
    assert done.steps["one"].output == {"a": 1, "all": {}}
    assert done.steps["two"].output == {"b": 2, "all": {"a": 1, "all": {}}}


async def test_a_handler_may_do_as_it_likes_with_what_it_got() -> None:
    service = Service({"b": [lambda: service.calls[1].fields["list"].append("more")]})
    body = """
        steps:
          - {id: a, use: act, with: {what: a, list: "{{ event.list }}"}}
          - {use: act, with: {what: b, list: "{{ event.list }}"}}
          - {use: act, with: {what: c, list: "{{ event.list }}", a: "{{ steps.a.output.list }}"}}
        """
    await run(body, {"list": [1]}, service)
    assert service.calls[1].fields == {"list": [1, "more"]}
    assert service.calls[2].fields == {"list": [1], "a": [1]}


# --- switch


SWITCH = """
    steps:
      - id: choose
        switch:
          - {when: event.n > 10, do: [{use: act, with: {what: many}}, {id: last, use: act, with: {what: very_many}}]}
          - {when: event.n > 0, do: [{use: act, with: {what: few}}]}
          - {when: event.n > 5, do: [{use: act, with: {what: never}}]}
        %s
      - {use: act, with: {what: after, of: "{{ steps.choose.output }}"}}
"""


@pytest.mark.parametrize(
    ("n", "done", "output"),
    [
        (11, ["many", "very_many", "after"], {"what": "very_many"}),
        (7, ["few", "after"], {"what": "few"}),
        (0, ["after"], None),
    ],
)
async def test_switch_runs_the_first_branch_that_holds(n: int, done: list[str], output: object) -> None:
    service = Service()
    await run(SWITCH % "", {"n": n}, service)
    assert service.done == done
    assert service.calls[-1].fields == {"of": output}


async def test_switch_runs_its_default_if_no_branch_holds() -> None:
    service = Service()
    await run(SWITCH % "default: [{use: act, with: {what: none}}]", {"n": 0}, service)
    assert service.done == ["none", "after"]
    assert service.calls[-1].fields == {"of": {"what": "none"}}


async def test_steps_of_branches_not_taken_are_skipped() -> None:
    service = Service()
    await run(
        """
        steps:
          - switch:
              - {when: "false", do: [{id: no, use: act, with: {what: no}}]}
              - {when: "true", do: [{id: yes, use: act, with: {what: yes}, catch: [{do: [{id: saved, set: {x: 1}}]}]}]}
          - {use: act, with: {what: see, no: "{{ steps.no }}", yes: "{{ steps.yes.state }}",
               saved: "{{ steps.saved.state }}"}}
        """,
        None, service,
    )  # fmt: skip
    seen = service.calls[-1].fields
    assert seen["no"] == {"state": "skipped", "output": None, "error": None, "attempts": 0}
    assert (seen["yes"], seen["saved"]) == ("completed", "skipped")


async def test_an_error_in_a_branchs_condition_is_of_type_expression() -> None:
    done = await run("steps: [{id: s, switch: [{when: event.missing > 1, do: []}]}]")
    assert done.stored.error is not None
    assert (done.stored.error.type, done.stored.error.step) == ("expression", "s")


async def test_skipped_steps_leave_a_blocks_output_to_the_last_that_ran() -> None:
    done = await run(
        """
        steps:
          - {id: s, switch: [{when: "true", do: [{use: act, with: {what: a}}, {use: act, when: "false",
               with: {what: b}}]}]}
        """
    )
    assert done.steps["s"].output == {"what": "a"}


async def test_a_branch_in_which_nothing_ran_has_no_output() -> None:
    done = await run('steps: [{id: s, switch: [{when: "true", do: [{set: {a: 1}, when: "false"}]}]}]')
    assert (done.steps["s"].state, done.steps["s"].output) == (StepState.COMPLETED, None)


# --- when


@pytest.mark.parametrize(
    ("when", "runs"),
    [("true", True), ("false", False), ("event.zero", False), ("event.empty", False), ("event.text", True),
     ("none", False), ("event.x is defined", False), ("not event.zero", True), ("event.list", False)],
)  # fmt: skip
async def test_a_step_runs_only_if_its_when_holds(when: str, runs: bool) -> None:
    service = Service()
    done = await run(
        f"steps: [{{id: a, use: act, when: {when}, with: {{what: a}}}}, {{use: act, with: {{what: b}}}}]",
        {"zero": 0, "empty": "", "text": "0", "list": []}, service,
    )  # fmt: skip
    assert service.done == (["a"] if runs else []) + ["b"]
    assert done.steps["a"].state is (StepState.COMPLETED if runs else StepState.SKIPPED)


async def test_a_skipped_step_can_be_read() -> None:
    service = Service()
    await run(
        """
        steps:
          - {id: a, use: act, when: "false", with: {what: a}}
          - {use: act, with: {what: b, a: "{{ steps.a }}"}}
        """,
        None, service,
    )  # fmt: skip
    assert service.calls[0].fields == {"a": {"state": "skipped", "output": None, "error": None, "attempts": 0}}


# --- fail, stop


async def test_fail_fails_the_run_with_its_error() -> None:
    service = Service()
    done = await run(
        """
        steps:
          - {id: f, fail: {type: too_many, message: "{{ event.n }} is too many"}}
          - {use: act, with: {what: never}}
        """,
        {"n": 5}, service,
    )  # fmt: skip
    assert (done.state, service.done) == (FAILED, [])
    error = done.stored.error
    assert error is not None
    assert (error.type, error.message, error.retryable, error.step) == ("too_many", "5 is too many", False, "f")


async def test_stop_ends_the_run_as_completed_even_from_within_blocks() -> None:
    service = Service()
    done = await run(
        """
        steps:
          - {use: act, with: {what: a}, compensate: {use: act, with: {what: undo_a}}}
          - switch: [{when: "true", do: [{stop: true}, {use: act, with: {what: never}}]}]
          - {use: act, with: {what: never}}
        on_failure: [{use: act, with: {what: never}}]
        """,
        None, service,
    )  # fmt: skip
    assert (done.state, service.done, done.stored.error) == (COMPLETED, ["a"], None)


async def test_an_empty_program_completes() -> None:
    assert (await run("steps: []")).state is COMPLETED


# --- now and uuid


async def test_now_is_the_runs_time_and_uuids_differ() -> None:
    service = Service()
    body = 'steps: [{use: act, with: {what: a, at: "{{ now() }}", one: "{{ uuid() }}", two: "{{ uuid() }}"}}]'
    await run(body, None, service)
    await run(body, None, service)
    first, second = (call.fields for call in service.calls)
    assert first["at"] == "2026-01-01T00:00:00.000Z"
    assert len({first["one"], first["two"], second["one"], second["two"]}) == 4
    assert all(uuid.UUID(value) for value in (first["one"], first["two"]))
