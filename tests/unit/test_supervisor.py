"""The supervisor by itself, with children that do little: who is asked to stop, who crashed, what the code says."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

HEAD = "import logging, os, signal, sys, time\nlogging.basicConfig()\nfrom runner.supervisor import Supervisor\n"


@contextmanager
def supervised(body: str, workers: int = 1) -> Iterator[subprocess.Popen[str]]:
    """A supervisor whose children run this body of `main(post)`."""
    main = "def main(post):\n" + "".join(f"    {line}\n" for line in body.splitlines())
    script = f"{HEAD}{main}sys.exit(Supervisor(main, {workers}).run())\n"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert word in process.stdout.readline()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors


def test_a_child_that_is_asked_to_stop_before_it_listens_has_not_crashed() -> None:
    with supervised("print('begun')\ntime.sleep(60)\nreturn 3") as process:
        said(process, "begun")
        process.send_signal(signal.SIGTERM)
        code, errors = ended(process)
    assert code == 0
    assert "died" not in errors


@pytest.mark.parametrize("code", [0, 1, 2, 69])
def test_a_child_that_never_was_ready_gives_its_code_and_is_not_replaced(code: int) -> None:
    with supervised(f"print('begun')\nreturn {code}", workers=3) as process:
        found, errors = ended(process)
    assert found == code
    assert errors == ""


def test_a_child_that_cannot_even_begin_is_tried_a_few_times() -> None:
    with supervised("os._exit(7)") as process:
        code, errors = ended(process)
    assert code == 70
    assert errors.count("died (exit code 7)") == 3
    assert "never came to work" in errors


def test_who_was_alone_with_a_suspect_tells_the_next_one() -> None:
    body = """
if post.kind == 'worker':
    if post.dead:
        return 0
    post.tell('owner', 'me')
    post.tell('ready')
    post.tell('suspects')
    time.sleep(60)
if post.culprits:
    print('culprits', *post.culprits, flush=True)
    time.sleep(60)
post.tell('suspect', 'run-7')
os.kill(os.getpid(), signal.SIGSEGV)
""".strip()
    with supervised(body) as process:
        said(process, "culprits run-7")
        process.send_signal(signal.SIGTERM)
        code, errors = ended(process)
    assert code == 0
    assert "signal SIGSEGV) with run run-7" in errors


def test_what_a_dead_child_had_forked_does_not_keep_it_from_being_replaced() -> None:
    """A plugin's own fork has the pipe open to which its dead parent told how it fares."""
    body = """
if post.dead:
    print('replaced', flush=True)
    time.sleep(60)
post.tell('owner', 'me')
post.tell('ready')
if os.fork() == 0:
    os.close(1), os.close(2)
    os.read(0, 1)  # until the test ends
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
""".strip()
    with supervised(body) as process:
        said(process, "replaced")
        process.send_signal(signal.SIGTERM)
        code, errors = ended(process)
    assert code == 0
    assert "signal SIGKILL" in errors
