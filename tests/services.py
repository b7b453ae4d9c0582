"""RabbitMQ and PostgreSQL of the tests' own: found on this machine, started on free loopback ports.

All calls block; an async test says `await asyncio.to_thread(rabbit_server.restart)`.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
CTL_TIMEOUT_S = 60.0
VHOSTS_A_BATCH = 20
APT_PACKAGES = {
    "RabbitMQ": "rabbitmq-server",
    "PostgreSQL": "postgresql",
    "Graphviz": "graphviz",
    "librabbitmq": "librabbitmq-dev",
}
ASYNCAPI = Path(__file__).parent / "asyncapi"
"""Where AsyncAPI's own parser is installed, which needs Node.js."""


class ServiceError(Exception):
    """A server or one of its tools failed; the message ends with what it printed."""


# --- finding ------------------------------------------------------------------------------------------


def find_rabbitmq() -> Path | None:
    """The folder with `rabbitmq-server` and `rabbitmqctl`, or None.

    The release's own folder comes first: Debian's /usr/sbin/rabbitmq-server switches to the user rabbitmq.
    """
    on_path = shutil.which("rabbitmq-server")
    folders = [
        *_newest_first(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin")),
        *([Path(on_path).resolve().parent] if on_path else []),
        Path("/opt/homebrew/sbin"),
        Path("/usr/local/sbin"),
    ]
    return _first_with(folders, "rabbitmq-server", "rabbitmqctl") if shutil.which("erl") else None


def find_postgres() -> Path | None:
    """The folder with `initdb`, `postgres` and the client programs, or None."""
    on_path = shutil.which("postgres")
    folders = [
        *_pg_config_bindir(),
        *_newest_first(Path("/usr/lib/postgresql").glob("*/bin")),
        *([Path(on_path).resolve().parent] if on_path else []),
    ]
    return _first_with(folders, "initdb", "postgres", "createdb", "pg_isready")


def _first_with(folders: list[Path], *programs: str) -> Path | None:
    return next((f for f in folders if all(os.access(f / program, os.X_OK) for program in programs)), None)


def _newest_first(folders: Iterator[Path]) -> list[Path]:
    return sorted(folders, key=lambda folder: [int(n) for n in re.findall(r"\d+", str(folder))], reverse=True)


def _pg_config_bindir() -> Iterator[Path]:
    with suppress(OSError):
        found = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            yield Path(found.stdout.strip())


# --- installing ------------------------------------------------------------------------------------------


def missing_services() -> list[str]:
    """Those of `APT_PACKAGES` that neither the environment names nor this machine has."""
    rabbitmq = os.environ.get("FLOWRUN_TEST_RABBITMQ") or find_rabbitmq()
    postgres = os.environ.get("FLOWRUN_TEST_POSTGRES") or find_postgres()
    found = (("RabbitMQ", rabbitmq), ("PostgreSQL", postgres), ("Graphviz", shutil.which("dot")))
    return [name for name, there in found if not there]


def install_asyncapi_parser() -> bool:
    """Install AsyncAPI's parser for the tests, if it is not there; without Node.js do nothing: False.

    Raises ServiceError if npm fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        return False
    if not (ASYNCAPI / "node_modules/@asyncapi/parser").exists():
        _run([npm, "ci", "--prefix", str(ASYNCAPI), "--ignore-scripts", "--no-audit", "--no-fund"], {**os.environ})
    return True


def install_if_root_on_debian(services: list[str]) -> bool:
    """Install the packages of `services`; or, unless we are root on Debian or its kin, do nothing: False.

    Raises ServiceError if apt-get fails.
    """
    if os.geteuid() != 0 or shutil.which("apt-get") is None or not Path("/etc/debian_version").exists():
        return False
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    packages = [APT_PACKAGES[service] for service in services]
    with _packages_start_no_daemons():
        _run(["apt-get", "update", "-q"], environment)
        _run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages], environment)
    return True


@contextmanager
def _packages_start_no_daemons() -> Iterator[None]:
    """Debian's own switch for this, policy-rc.d; one that is there already stays as it is."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            policy.unlink(missing_ok=True)


# --- processes ------------------------------------------------------------------------------------------


class Daemon:
    """A program in a session of its own, so that Ctrl-C doesn't reach it; it dies when this process does.

    A shell reads from a pipe that we hold and never write to: when we are gone, killed or not, the read ends
    and the shell kills the program. Linux's PR_SET_PDEATHSIG would fire when the *thread* that started the
    program ends, which under `asyncio.to_thread` is long before the process does.
    """

    def __init__(
        self,
        command: list[str | Path],
        *,
        environment: dict[str, str],
        log: Path,
        user: str | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=log.parent,
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )
        self._death_signal = death_signal
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; kill -s "$1" "$2"', "sh", death_signal.name[3:], str(self.pid)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self, stop_signal: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end, and kill it if it hasn't after 30 s."""
        if self.running:
            self._process.send_signal(stop_signal)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._watchdog.kill()
        self._watchdog.communicate()

    def kill(self) -> None:
        """End it as a crash would."""
        self.stop(self._death_signal)


def free_port() -> int:
    """A loopback port nobody listens on.

    From below the range that kernels give to clients: else a client that keeps trying to reach a stopped
    server may be given the server's own port, and keep it from coming back.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _wait_until(ready: Callable[[], bool], daemon: Daemon, what: str, log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not ready():
        if not daemon.running or time.monotonic() > deadline:
            state = "is not ready after 90 s" if daemon.running else "ended"
            daemon.kill()
            raise ServiceError(f"{what} {state}; its log ends:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.05)


def _run(command: list[str], environment: dict[str, str], user: str | None = None) -> str:
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=None if command[0] == "apt-get" else CTL_TIMEOUT_S,
        check=False,
        cwd="/",
        user=user,
        group=user,
    )
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise ServiceError(f"`{' '.join(command)}` failed with {done.returncode}: {said}")
    return done.stdout


def _clean_environment(**more: str) -> dict[str, str]:
    """PATH and nothing else from ours: a developer's RABBITMQ_*, ERL_* and PG* variables would redirect us."""
    return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **more}


# --- RabbitMQ ------------------------------------------------------------------------------------------

_RABBITMQ_CONF = """
vm_memory_high_watermark.absolute = 2GB
disk_free_limit.absolute = 1MB
log.console = false
"""


class Erlang:
    """What nodes share that are to find each other: a cookie, and epmd, the daemon that knows their names.

    Erlang would start one by itself, but one that stays for ever.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.cookie = f"{random.getrandbits(128):x}"
        self._epmd: Daemon | None = None

    def start(self, log: Path) -> None:
        """Once for all nodes."""
        program = shutil.which("epmd")
        if program is None or (self._epmd is not None and self._epmd.running):
            return
        command: list[str | Path] = [program, "-address", "127.0.0.1", "-port", str(self.port)]
        self._epmd = Daemon(command, environment=_clean_environment(), log=log)

    def close(self) -> None:
        if self._epmd is not None:
            self._epmd.kill()


class RabbitServer:
    """One RabbitMQ node; `start` it, `close` it when done. `settings` are further lines of its rabbitmq.conf.

    Keeps its ports and its data over `stop`, `kill` and `restart`. Nodes of one cluster share an `erlang`.
    """

    def __init__(self, sbin: Path, *, erlang: Erlang | None = None, settings: str = "") -> None:
        self._sbin = sbin
        self._folder = Path(tempfile.mkdtemp(prefix="flowrun-rabbitmq-"))
        self._port, dist_port = free_port(), free_port()
        self._erlang = erlang or Erlang()
        self.node = f"flowrun-{self._port}@localhost"
        self._environment = self._prepare(dist_port, settings)
        self._log = self._folder / "output"
        self._daemon: Daemon | None = None
        self._vhosts: list[str] = []
        self._vhosts_made = 0

    @property
    def url(self) -> str:
        """The node's default vhost; a test should rather take a `new_vhost`."""
        return f"amqp://guest:guest@127.0.0.1:{self._port}/"

    @property
    def pid(self) -> int | None:
        return self._daemon.pid if self._daemon is not None and self._daemon.running else None

    def start(self) -> None:
        """Return once the node answers AMQP, whatever state a test left it in."""
        if self.pid is not None:
            if not self._answers():
                self.start_app()
            return
        self._erlang.start(self._log)
        # With input allowed the script becomes the node, instead of a parent whose death would orphan it.
        command: list[str | Path] = [self._sbin / "rabbitmq-server", "-noinput", "+B", "i"]
        environment = {**self._environment, "RABBITMQ_ALLOW_INPUT": "1"}
        self._daemon = Daemon(command, environment=environment, log=self._log)
        _wait_until(self._answers, self._daemon, "RabbitMQ", self._log)

    def stop(self) -> None:
        """Shut the node down in order."""
        if self._daemon is not None:
            self._daemon.stop()

    def kill(self) -> None:
        """SIGKILL the node; `restart` brings it back with what was on its disk. See `flush`."""
        if self._daemon is not None:
            self._daemon.kill()

    def freeze(self) -> None:
        """Let it hang: its connections stay, and it says nothing until `thaw`."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Stop the node in order, unless it is down, and return once it answers again."""
        self.stop()
        self.start()

    def flush(self) -> None:
        """Write down which quorum queues there are, so that a `kill` can't lose one with its messages.

        RabbitMQ keeps that list in files that it writes about a second later; a queue declared just before a
        kill comes back without a leader, for good (3.10.8).
        """
        self.ctl("eval", "[ok = dets:sync(Table) || Table <- dets:all()].")

    def stop_app(self) -> None:
        """Close every connection and the port; the Erlang node stays, and `start_app` is quick."""
        self.ctl("stop_app")

    def start_app(self) -> None:
        """Undo `stop_app`; returns once the node answers."""
        self.ctl("start_app")

    def ctl(self, *args: str) -> str:
        """What `rabbitmqctl` prints for `args`, without headings. Starts an Erlang VM: half a second at least."""
        return _run([str(self._sbin / "rabbitmqctl"), "-q", "-n", self.node, *args], self._environment)

    def new_vhost(self) -> str:
        """The URL of an empty vhost that nobody else gets.

        Made twenty at a time, since it's the call of rabbitmqctl that costs; never deleted, for the same reason.
        """
        if not self._vhosts:
            self._vhosts = self._make_vhosts()
        return self.url + self._vhosts.pop(0)

    def close(self) -> None:
        """End everything and remove the data."""
        self.kill()
        self._erlang.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make_vhosts(self) -> list[str]:
        first = self._vhosts_made
        self._vhosts_made += VHOSTS_A_BATCH
        names = [f"test-{number}" for number in range(first, self._vhosts_made)]
        everything = {"user": "guest", "configure": ".*", "write": ".*", "read": ".*"}
        definitions = self._folder / "vhosts.json"
        definitions.write_text(
            json.dumps(
                {
                    "vhosts": [{"name": name} for name in names],
                    "permissions": [{"vhost": name, **everything} for name in names],
                }
            )
        )
        self.ctl("await_startup")  # the port opens before the node takes commands
        self.ctl("import_definitions", str(definitions))
        return names

    def _answers(self) -> bool:
        """Whether AMQP's protocol header is answered with a method frame (type 1): Connection.Start."""
        with (
            suppress(OSError),
            socket.create_connection(("127.0.0.1", self._port), timeout=5) as connection,
        ):
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
        return False

    def _prepare(self, dist_port: int, settings: str) -> dict[str, str]:
        """Write the node's files and return the environment of server and rabbitmqctl.

        Every file that RabbitMQ would look for in /etc or a home is named here, so that none is read there.
        """
        folder = self._folder
        files = {
            "rabbitmq.conf": _RABBITMQ_CONF + settings,
            "advanced.config": "[].\n",
            "enabled_plugins": "[].\n",
            "env.conf": "",
            ".erlang.cookie": self._erlang.cookie,
        }
        for name, text in files.items():
            (folder / name).write_text(text)
        (folder / ".erlang.cookie").chmod(0o400)
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        return _clean_environment(
            HOME=str(folder),
            ERL_EPMD_ADDRESS="127.0.0.1",
            ERL_EPMD_PORT=str(self._erlang.port),
            RABBITMQ_NODENAME=self.node,
            RABBITMQ_NODE_IP_ADDRESS="127.0.0.1",
            RABBITMQ_NODE_PORT=str(self._port),
            RABBITMQ_DIST_PORT=str(dist_port),
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=loopback,
            RABBITMQ_CTL_ERL_ARGS=loopback,
            RABBITMQ_MNESIA_BASE=str(folder / "data"),
            RABBITMQ_LOG_BASE=str(folder / "log"),
            RABBITMQ_PID_FILE=str(folder / "pid"),
            RABBITMQ_GENERATED_CONFIG_DIR=str(folder / "generated"),
            RABBITMQ_CONFIG_FILE=str(folder / "rabbitmq.conf"),
            RABBITMQ_ADVANCED_CONFIG_FILE=str(folder / "advanced.config"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(folder / "enabled_plugins"),
            RABBITMQ_CONF_ENV_FILE=str(folder / "env.conf"),
        )


class RabbitCluster:
    """Several nodes joined into one broker; a quorum queue has a replica on each."""

    def __init__(self, sbin: Path, size: int = 3) -> None:
        erlang = Erlang()
        self.nodes = tuple(RabbitServer(sbin, erlang=erlang) for _ in range(size))

    def start(self) -> None:
        """Return once all nodes have joined."""
        first, *others = self.nodes
        first.start()  # with it the daemon that the others ask for each other
        with ThreadPoolExecutor(len(others)) as pool:
            list(pool.map(RabbitServer.start, others))
        for node in others:
            node.ctl("stop_app")
            node.ctl("join_cluster", first.node)
            node.ctl("start_app")

    def new_vhost(self) -> tuple[str, ...]:
        """The URLs of an empty vhost that nobody else gets, one a node."""
        vhost = self.nodes[0].new_vhost().rpartition("/")[2]
        return tuple(node.url + vhost for node in self.nodes)

    def close(self) -> None:
        """End everything and remove the data."""
        for node in self.nodes:
            node.close()


# --- PostgreSQL ------------------------------------------------------------------------------------------


class PostgresServer:
    """One PostgreSQL server with fsync on, as in production; `start` it, `close` it when done.

    Keeps its port and its data over `stop`, `kill` and `restart`. Runs as the user postgres if we are root,
    whom PostgreSQL refuses.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._user = "postgres" if os.geteuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="flowrun-postgres-"))
        self._log = self._folder / "output"
        self._port = free_port()
        self._daemon: Daemon | None = None
        self._databases_made = 0
        if self._user is not None:
            shutil.chown(self._folder, self._user, self._user)

    @property
    def url(self) -> str:
        """The maintenance database; a test should rather take a `new_database`."""
        return self._url("postgres")

    @property
    def pid(self) -> int | None:
        return self._daemon.pid if self._daemon is not None and self._daemon.running else None

    def start(self) -> None:
        """Return once the server takes connections."""
        if self.pid is not None:
            return
        data = self._folder / "data"
        if not data.exists():
            initdb = [str(self._programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres"]
            _run([*initdb, "-E", "UTF8", "--no-locale", "--no-sync"], _clean_environment(), self._user)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": "",
            "max_connections": "200",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._daemon = Daemon(
            [self._programs / "postgres", "-D", data, *options],
            environment=_clean_environment(),
            log=self._log,
            user=self._user,
            # "Immediate shutdown" loses nothing that a crash keeps, and leaves no shared memory behind.
            death_signal=signal.SIGQUIT,
        )
        _wait_until(self._answers, self._daemon, "PostgreSQL", self._log)

    def stop(self) -> None:
        """Shut down in order, cutting connections ("fast shutdown")."""
        if self._daemon is not None:
            self._daemon.stop(signal.SIGINT)

    def kill(self) -> None:
        """End it without a checkpoint; `restart` then recovers from the write-ahead log."""
        if self._daemon is not None:
            self._daemon.kill()

    def restart(self) -> None:
        """Stop the server in order, unless it is down, and return once it takes connections again."""
        self.stop()
        self.start()

    def new_database(self) -> str:
        """The URL of an empty database that nobody else gets."""
        self._databases_made += 1
        name = f"test_{self._databases_made}"
        _run([str(self._programs / "createdb"), *self._client_options(), name], _clean_environment())
        return self._url(name)

    def close(self) -> None:
        """End everything and remove the data."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        command = [str(self._programs / "pg_isready"), "-q", *self._client_options()]
        return subprocess.run(command, env=_clean_environment(), check=False).returncode == 0

    def _client_options(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self._port), "-U", "postgres"]

    def _url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._port}/{database}"
