"""The processes of the demonstration: a daemon of our own, its clients, and their end."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Everything is answered long before; this is for a machine that is in trouble.
DEADLINE_S = 60.0
POLL_S = 0.001
LOG_LINES = 20


class Failed(Exception):
    """The demonstration cannot go on."""


def until(what: str, done: Callable[[], Any]) -> Any:
    """Asks until the answer is true, and returns it; fails after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not (answer := done()):
        if time.monotonic() > deadline:
            raise Failed(f"waited {DEADLINE_S:.0f} s for {what}")
        time.sleep(POLL_S)
    return answer


class Child:
    """A process that prints one line of JSON, and stays until its standard input ends."""

    def __init__(self, label: str, command: list[str], environment: dict[str, str]) -> None:
        self.label = label
        # A session of its own: Ctrl-C is for the demonstration, which then ends its children.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> dict[str, Any]:
        """Its line."""
        readable, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
        line = self.process.stdout.readline() if readable else b""
        if not line:
            raise Failed(f"{self.label} (process {self.pid}) said nothing; see its error above")
        return json.loads(line)

    def leave(self) -> None:
        """Ends its input, and waits for a good end."""
        self.process.stdin.close()
        if status := self.process.wait(DEADLINE_S):
            raise Failed(f"{self.label} (process {self.pid}) ended with status {status}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Node:
    """A daemon on a runtime directory of its own, and its clients."""

    def __init__(self, scratch: Path, runtime_dir: Path) -> None:
        self.scratch, self.runtime_dir = scratch, runtime_dir
        self.log = scratch / "mrmd.log"
        self.children: list[Child] = []
        self.daemon: subprocess.Popen[bytes] | None = None
        # Nothing that the caller has set for another daemon may reach this one.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MRM_", "PYTHON"))}
        # One thread each: nine encoders on a small machine would only be in each other's way.
        kept |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self.environment = kept | {
            "HOME": kept.get("HOME", str(scratch)),
            "MRM_SOCKET": str(runtime_dir / "mrmd.sock"),
            "PYTHONPATH": str(scratch / "site"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def start(self, mrmd: Path, models: dict[str, Path]) -> None:
        """Starts the daemon, and waits until it serves."""
        # JSON strings are TOML strings.
        entries = [
            f"[[model]]\nname = {json.dumps(name)}\npath = {json.dumps(str(path))}\n"
            for name, path in models.items()
        ]
        config = self.scratch / "mrm.toml"
        config.write_text("\n".join(entries))
        command = [str(mrmd), "--config", str(config), "--runtime-dir", str(self.runtime_dir)]
        address = str(self.runtime_dir.parent / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, open(self.log, "wb") as log:
            ready.bind(address)
            ready.settimeout(0.1)
            environment = self.environment | {"NOTIFY_SOCKET": address}
            self.daemon = subprocess.Popen(
                command, stderr=log, stdout=log, env=environment, start_new_session=True
            )
            until("mrmd to be ready", lambda: b"READY=1" in self._notified(ready))

    def _notified(self, ready: socket.socket) -> bytes:
        if self.daemon.poll() is not None:
            raise Failed(f"mrmd ended with status {self.daemon.returncode}")
        try:
            return ready.recv(4096)
        except TimeoutError:
            return b""

    def spawn(self, label: str, command: list[str]) -> Child:
        """Starts a client."""
        child = Child(label, command, self.environment)
        self.children.append(child)
        return child

    def ask(self, path: str) -> dict[str, Any]:
        """An answer of the status socket."""
        connection = http.client.HTTPConnection("mrmd", timeout=DEADLINE_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(str(self.runtime_dir / "status.sock"))
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def session_pids(self) -> set[int]:
        return {session["pid"] for session in self.ask("/v1/sessions")["sessions"]}

    def stop(self) -> tuple[int, float]:
        """Asks the daemon to end; its exit status, and how many milliseconds it took."""
        start = time.perf_counter()
        self.daemon.send_signal(signal.SIGTERM)
        status = self.daemon.wait(DEADLINE_S)
        return status, (time.perf_counter() - start) * 1e3

    def abandon(self) -> None:
        """Ends whatever still runs, at once."""
        for child in self.children:
            child.kill()
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait()

    def log_tail(self) -> str:
        """The end of the daemon's log."""
        if not self.log.exists():
            return ""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join(["mrmd said last:", *lines])
