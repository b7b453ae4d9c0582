"""Secrets are used in every place that could show them; then all that flowrun keeps and says is searched for them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import Shop

FLOW = """
flow: leaks
uses: {secrets: [TOKEN, HOOK, SHOP_DB, PEM, PIN]}

events:
  go: {external: true}
  told: {}

commands:
  leak.much: {schema: {}, reply: {}, handler: answer, timeout: 10s}

routes:
  - {on: go, to: [connect, query, refuse, crash, count, say, answer_all]}

handlers:
  connect:
    retry: {max_attempts: 2, delay: 1ms}
    steps:
      - {use: http.request, with: {method: GET, url: "{{ secrets.HOOK }}"}}
  query:
    retry: {max_attempts: 2, delay: 1ms}
    steps:
      - {use: sql.query, with: {url: "{{ secrets.SHOP_DB }}", sql: SELECT 1}}
  refuse:
    steps:
      - use: leak.refuse
        with: {token: "{{ secrets.TOKEN }}", pem: "{{ secrets.PEM }}", user: "Basic {{ secrets.TOKEN | urlencode }}"}
        catch: [{do: [{use: log, with: {message: "{{ error }}"}}]}]
      - use: leak.refuse
        with: {token: "{{ secrets.TOKEN }}", pem: "{{ secrets.PEM }}", user: ""}
  crash:
    retry: {max_attempts: 2, delay: 1ms}
    steps:
      - {use: leak.crash, with: {text: "{{ secrets.PEM }} and {{ secrets.TOKEN }}"}}
  count:
    steps:
      - {use: leak.crash, with: {text: "{{ secrets.PEM | trim * 2 }}"}}
  say:
    steps:
      - id: one
        use: leak.say
        with: {token: "{{ secrets.TOKEN }}", pem: "{{ secrets.PEM }}", pin: "{{ secrets.PIN }}"}
      - emit: told
        with: {said: "{{ steps.one.output }}"}
      - use: log
        with: {message: "{{ steps.one.output }}"}
  answer_all:
    steps:
      - {command: leak.much}
  answer:
    steps:
      - id: one
        use: leak.say
        with: {token: "{{ secrets.TOKEN }}", pem: "{{ secrets.PEM }}", pin: "{{ secrets.PIN }}"}
      - id: two
        use: leak.refuse
        with: {token: "{{ secrets.TOKEN }}", pem: "{{ secrets.PEM }}", user: ""}
    reply: {said: "{{ steps.one.output }}"}
"""
PLUGIN = '''
"""Handlers that tell what they were told."""

import base64
import json
from typing import Any

from runner import Context, TerminalError, handler


@handler("leak.refuse", effect=False)
async def refuse(ctx: Context, *, token: str, pem: str, user: str) -> None:
    raise TerminalError(f"no.{token}", f"{token} and {user} are wrong", token=token, deep=[{token: pem}])


@handler("leak.crash", effect=False)
def crash(ctx: Context, *, text: str) -> None:
    raise ValueError(text)


@handler("leak.say", effect=False)
async def say(ctx: Context, *, token: str, pem: str, pin: str) -> Any:
    ctx.logger.warning("the token is %s, the key %r", token, pem)
    ctx.logger.error(json.dumps([token, pem]))
    ctx.logger.info("%s", pem)
    basic = base64.b64encode(f"user:{token}".encode()).decode()
    return {token: [pem, pem.splitlines()[1]], "basic": basic, "pin": int(pin)}
'''
PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nzuF7u0dRkqLFQ1DQZ1hQrg==\n-----END KEY-----"
TOKEN = 'tök"en/s3cr3t'
SECRETS = {
    "TOKEN": TOKEN,
    "HOOK": "http://bob:hunter2hunter2@127.0.0.1:1/hook/T01B02X03?key=k3y-of-the-hook",
    "SHOP_DB": "sqlite:/nowhere/db-of-the-shop.db",
    "PIN": "83746501",
}
NEVER = (
    TOKEN,
    json.dumps(TOKEN)[1:-1],
    "s3cr3t",
    base64.b64encode(TOKEN.encode()).decode()[:12],
    "hunter2hunter2",
    "T01B02X03",
    "k3y-of-the-hook",
    "db-of-the-shop",
    "83746501",
    *PEM.splitlines(),
)


@pytest.fixture
def leaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    root = tmp_path / "leaky"
    for name, text in {"flows/leaks.yaml": FLOW, "plugins/leaky.py": PLUGIN, "flowrun.yaml": "project: shop\n"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (tmp_path / "pem").write_text(f"{PEM}\n")
    monkeypatch.setenv("PEM_FILE", str(tmp_path / "pem"))
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with Shop(tmp_path / "data", root=root) as project:
        (tmp_path / "data").mkdir()
        yield project


def test_nothing_that_is_kept_or_said_holds_a_secret(leaky: Shop) -> None:
    leaky.run("emit", "go", "--data", "{}")
    told = [leaky.run("start", "--until-idle")]
    runs = leaky.json("runs", "list")
    assert {run["handler"].removeprefix("leaks."): run["state"] for run in runs} == {
        "connect": "failed",
        "query": "failed",
        "refuse": "failed",
        "crash": "failed",
        "count": "failed",
        "say": "completed",
        "answer_all": "failed",
        "answer": "failed",
    }
    told += [leaky.run("call", "leak.much", "--data", "{}", "--timeout", "1ms", check=False), leaky.run("runs", "list")]
    for run in runs:
        told += [leaky.run("runs", "show", run["id"]), leaky.run("runs", "show", run["id"], "--json")]
    told += [leaky.run("runs", "list", "--json"), leaky.run("dlq", "list"), leaky.run("dlq", "list", "--json")]
    for event in leaky.json("events", "list"):
        told += [leaky.run("events", "show", event["id"]), leaky.run("events", "show", event["id"], "--json")]

    said = "\n".join(done.stdout + done.stderr for done in told)
    assert said.count("***") > 20
    kept = {path.name: path.read_bytes() for path in leaky.folder.rglob("*") if path.is_file()}
    assert any(b"***" in data for data in kept.values())
    for value in NEVER:
        assert value not in said, f"{value} is said"
        assert [name for name, data in kept.items() if value.encode() in data] == [], f"{value} is kept"


def test_a_plugin_that_returns_a_secret_is_told_of_once_a_step(leaky: Shop) -> None:
    for _ in range(3):
        leaky.run("emit", "go", "--data", "{}")
    said = leaky.run("start", "--until-idle").stderr
    assert said.count("[flowrun.leaks.say] the result of one holds a secret") == 1


def test_a_secret_that_cannot_be_masked_is_said_at_the_start(leaky: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIN", "12")
    said = leaky.run("start", "--until-idle", "--quiet").stderr
    assert "secret PIN is not masked: it is shorter than 4 characters" in said
    assert "secret TOKEN" not in said
