"""`expected_version` with the real command: a conflict is the step's error, on every broker and store."""

from __future__ import annotations

import json
import re
from pathlib import Path

from project import ROOT, Shop

FLOW = """
flow: f
events:
  asked: {external: true}
  told: {schema: {type: object}, subject: "x/{{ event.k }}"}
routes: [{on: asked, to: tell}]
handlers:
  tell:
    retry: {max_attempts: 1}
    steps: [{emit: told, with: {k: a}, expected_version: "{{ event.version }}"}]
"""


def test_of_those_who_expect_the_same_version_one_completes_and_the_others_fail(
    place: tuple[str, str | None], tmp_path: Path
) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/f.yaml").write_text(FLOW)
    (tmp_path / "flowrun.yaml").write_text("project: shop\n")
    broker, store = place
    (tmp_path / "asked.jsonl").write_text(3 * (json.dumps({"version": 0}) + "\n") + json.dumps({"version": 7}) + "\n")
    with Shop(tmp_path, broker, root=tmp_path, store=store) as shop:
        shop.run("emit", "asked", "--file", str(tmp_path / "asked.jsonl"))
        shop.run("start", "--until-idle", "--quiet")
        ended = [(run["state"], (run["error"] or {}).get("type")) for run in shop.json("runs", "list")]
        assert sorted(ended) == [("completed", None)] + 3 * [("failed", "version_conflict")]
        assert [event["version"] for event in shop.json("events", "list", "--type", "told")] == [1]


def test_the_example_of_the_docs_lets_nobody_overdraw(tmp_path: Path) -> None:
    page = (ROOT / "docs/language.md").read_text(encoding="utf-8")
    [example] = [text for text in re.findall(r"```yaml fragment\n(.*?)```", page, re.DOTALL) if "  withdraw:" in text]
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/bank.yaml").write_text(
        """flow: bank
events:
  money.deposited: {external: true, schema: {required: [account, amount]}, subject: "account/{{ event.account }}"}
  money.withdrawn: {schema: {required: [account, amount]}, subject: "account/{{ event.account }}"}
commands: {withdraw: {handler: withdraw, timeout: 20s, schema: {required: [account, amount]}}}
"""
        + example
    )
    with Shop(tmp_path, root=tmp_path) as shop:
        assert shop.run("validate").stdout == "1 file valid.\n"
        shop.run("emit", "money.deposited", "--data", '{"account": "a", "amount": 10}')
        shop.run("start", "--until-idle", "--quiet")
        process = shop.start()
        calls = [shop.begin("call", "withdraw", "--data", '{"account": "a", "amount": 7}', "--json") for _ in range(4)]
        said = [json.loads(call.communicate(timeout=60)[0]) for call in calls]
        process.terminate()
        process.wait()
        assert sum("result" in each for each in said) == 1
        assert {each["error"]["type"] for each in said if "error" in each} <= {"version_conflict", "insufficient_funds"}
        assert shop.json("query", "account", "account/a")["state"]["balance"] == 3
