"""The README is run as printed: every command of its console blocks, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from project import Shop, stop, wait_for_line

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CHANGES = re.compile(
    r"\b[0-9a-f]{8}\b(-[0-9a-f]{4}){3}-[0-9a-f]{12}"  # ids
    r"|\b[0-9a-f]{8}\b"
    r"|\d{4}-\d\d-\d\dT[\d:.]+Z|\d\d:\d\d:\d\d\.\d{3}"  # times
    r"|\(\d+ ms\)"
)


YAML = re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def console_sessions() -> list[tuple[str, list[str]]]:
    """(command, the lines that it is said to print), in the order of the page."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def masked(text: str) -> list[str]:
    return [CHANGES.sub("…", line).rstrip() for line in text.splitlines()]


def test_every_command_prints_what_the_readme_says(tmp_path: Path) -> None:
    folder = tmp_path
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1"}
    for name in ("FLOWRUN_BROKER", "FLOWRUN_STORE"):
        environment.pop(name, None)
    for command, printed in console_sessions():
        if command.startswith("cd "):
            folder = folder / command[3:]
            continue
        if command.startswith("flowrun query") and "projections:" not in (folder / "flows/hello.yaml").read_text():
            with (folder / "flows/hello.yaml").open("a") as flow:
                flow.writelines(block for block in YAML if block.startswith("projections:"))
        words, _, remark = command.partition("    # exit ")
        done = subprocess.run(
            words, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == int(remark or 0), f"{words}\n{done.stdout}{done.stderr}"
        said = masked(done.stdout + done.stderr)
        wanted = masked("\n".join(printed))
        assert said[: len(wanted)] == wanted, words


def test_the_flow_and_the_handler_shown_are_those_that_init_writes(tmp_path: Path) -> None:
    subprocess.run(
        [Path(sys.executable).parent / "flowrun", "init", tmp_path / "hello"], check=True, capture_output=True
    )
    [flow] = [block for block in YAML if "flow: hello" in block]
    [handler] = [b for b in re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if "@handler" in b]
    assert handler.strip() in (tmp_path / "hello" / "plugins" / "greetings.py").read_text()
    (tmp_path / "hello" / "flows" / "hello.yaml").write_text(flow)
    done = subprocess.run(
        [Path(sys.executable).parent / "flowrun", "validate"],
        cwd=tmp_path / "hello",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "1 file valid.\n"


def test_the_requests_shown_are_answered_as_it_says(tmp_path: Path) -> None:
    subprocess.run(
        [Path(sys.executable).parent / "flowrun", "init", tmp_path / "hello"], check=True, capture_output=True
    )
    [endpoint] = [block for block in YAML if block.startswith("ingress:")]
    with (tmp_path / "hello/flows/hello.yaml").open("a") as flow:
        flow.write(endpoint)
    requests = re.findall(r"^curl 127.0.0.1:8080(\S+) --json '(.*?)' +# (\d+),", README, re.MULTILINE)
    with Shop(tmp_path, root=tmp_path / "hello") as hello:
        worker = hello.start("--http", "127.0.0.1:0")
        url = wait_for_line(worker, "HTTP on")[-1].split("HTTP on ")[1].split(": ")[0]
        for path, body, status in requests:
            said = httpx.post(url + path, content=body, headers={"Content-Type": "application/json"})
            assert said.status_code == int(status), said.text
        wait_for_line(worker, "Hello, Ada!")
        assert stop(worker)[0] == 0
    assert len(requests) == 2


def test_the_bounds_shown_fit_the_handler_shown(tmp_path: Path) -> None:
    with Shop(tmp_path, root=tmp_path) as shop:
        shop.run("init", "hello")
        [bounds] = [block for block in YAML if "throttle:" in block]
        flow = tmp_path / "hello/flows/hello.yaml"
        text = flow.read_text()
        assert "  greet:\n" in text
        flow.write_text(text.replace("  greet:\n", f"  greet:\n{bounds}"))
        assert shop.run("validate", "-C", "hello").stdout == "1 file valid.\n"


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)$", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


@pytest.mark.rabbitmq
def test_the_plain_client_shown_starts_a_run_on_rabbitmq(rabbit_url: str, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    [client] = [block for block in blocks if "import pika" in block]
    flowrun = Path(sys.executable).parent / "flowrun"
    subprocess.run([flowrun, "init", tmp_path / "hello"], check=True, capture_output=True)
    start = [flowrun, "start", "--until-idle", "--broker", rabbit_url]
    subprocess.run(start, cwd=tmp_path / "hello", check=True, capture_output=True)

    subprocess.run([sys.executable, "-c", client.replace("amqp://guest:guest@localhost/", rabbit_url)], check=True)
    told = subprocess.run(start, cwd=tmp_path / "hello", check=True, capture_output=True, text=True).stderr

    assert "Hello, Ada!" in told
