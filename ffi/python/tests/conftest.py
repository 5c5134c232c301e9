"""A daemon with a few models, for the tests that need one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
READY_TIMEOUT_S = 20
os.environ.setdefault("MRM_LIBRARY", str(ROOT / "target" / "debug" / "libmrm.so"))

#: Of the file `small`: name, element type, shape, bytes of one element.
TENSORS = [
    ("floats", "F32", [3, 4], 4),
    ("longs", "I64", [5], 8),
    ("scalar", "F64", [], 8),
    ("empty", "F32", [0, 3], 4),
    ("half", "F16", [2, 2], 2),
    ("brain", "BF16", [4], 2),
    ("eight", "F8_E4M3", [6], 1),
    ("flags", "BOOL", [3], 1),
    ("odd", "U16", [3], 2),
]


def write_safetensors(
    path: Path, tensors: list[tuple[str, str, list[int], bytes]], metadata: dict[str, str]
) -> None:
    """Writes the format by hand, so that types which numpy lacks can be in it."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, dtype, shape, payload in tensors:
        offsets = [len(data), len(data) + len(payload)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += payload
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def payload(name: str, nbytes: int) -> bytes:
    """Bytes that depend on the name alone."""
    if name == "flags":
        return b"\1\0\1"
    return random.Random(name).randbytes(nbytes)


def small_tensors() -> list[tuple[str, str, list[int], bytes]]:
    """The tensors of the file `small`."""
    made = []
    for name, dtype, shape, width in TENSORS:
        count = 1
        for dim in shape:
            count *= dim
        made.append((name, dtype, shape, payload(name, count * width)))
    return made


@dataclass
class Daemon:
    """A running daemon."""

    socket: Path
    models: Path
    process: subprocess.Popen[bytes]


def make_models(directory: Path) -> dict[str, Path]:
    """Writes the models, and says what to register."""
    write_safetensors(directory / "small.safetensors", small_tensors(), {"format": "np"})
    floats = b"\0\0\x80\x3f" * (1 << 20)
    for i in range(2):
        tensors = [(f"part.{i}", "F32", [1 << 20], floats)]
        write_safetensors(directory / f"large-{i}.safetensors", tensors, {})
    sharded = directory / "sharded"
    sharded.mkdir()
    weight_map = {}
    for i in range(2):
        name = f"model-0000{i + 1}-of-00002.safetensors"
        shutil.copy(directory / f"large-{i}.safetensors", sharded / name)
        weight_map[f"part.{i}"] = name
    index = {"metadata": {"total_size": 8 << 20}, "weight_map": weight_map}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "blob.bin").write_bytes(bytes(range(256)) * 64)
    (directory / "broken.safetensors").write_bytes(b"\xff" * 100)
    return {
        "small": directory / "small.safetensors",
        "large": directory / "large-0.safetensors",
        "sharded": sharded,
        "blob": directory / "blob.bin",
        "broken": directory / "broken.safetensors",
    }


@contextlib.contextmanager
def run_daemon(runtime: Path, models: Path, *arguments: str) -> Iterator[Daemon]:
    """Starts a daemon, waits until it is ready, and stops it in the end."""
    binary = Path(os.environ.get("MRMD", ROOT / "target" / "debug" / "mrmd"))
    if not binary.exists():
        pytest.skip(f"{binary} is not there: run `cargo build -p mrm-daemon`, or set MRMD")
    command = [str(binary), "--runtime-dir", str(runtime), *arguments]
    for name, path in make_models(models).items():
        command += ["--model", f"{name}={path}"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(runtime / "notify"))
        notify.settimeout(READY_TIMEOUT_S)
        environment = {**os.environ, "NOTIFY_SOCKET": str(runtime / "notify")}
        process = subprocess.Popen(command, env=environment)
        try:
            said = b""
            while b"READY=1" not in said:
                said = notify.recv(4096)
            yield Daemon(runtime / "mrmd.sock", models, process)
        finally:
            process.terminate()
            process.wait(READY_TIMEOUT_S)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests, where the functions of the module find it."""
    directories = tmp_path_factory.mktemp("runtime"), tmp_path_factory.mktemp("models")
    with run_daemon(*directories) as running:
        os.environ["MRM_SOCKET"] = str(running.socket)
        yield running


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of one test, which may kill it. Nothing starts it again."""
    for name in ("runtime", "models"):
        (tmp_path / name).mkdir()
    directories = tmp_path / "runtime", tmp_path / "models"
    with run_daemon(*directories, "--keeper-kind", "none") as running:
        yield running
