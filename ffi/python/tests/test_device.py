"""Weights on a device, with a daemon and this package on the fake CUDA driver.

Needs ``mrm-fake-cuda`` and ``mrmd``; without either, the tests say so and skip.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Daemon, run_daemon, small_tensors

BUILT = ROOT / "target" / "debug"
SCRIPT = Path(__file__).with_name("device_script.py")
LOADER = Path(__file__).with_name("safetensors_script.py")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pretended machine, in the environment of the processes that the test starts."""
    installer = BUILT / "mrm-fake-cuda-dir"
    if not installer.exists():
        pytest.skip(f"{installer} is not there: run `cargo build -p mrm-fake-cuda`")
    subprocess.run([installer, tmp_path / "driver"], check=True, stdout=subprocess.DEVNULL)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "driver"))
    monkeypatch.setenv("MRM_FAKE_CUDA_DIR", str(tmp_path / "machine"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def run(script: Path, daemon: Daemon, *arguments: str, **more: str) -> object:
    """What a script says, run in a process that finds the driver, the daemon and the package."""
    path = f"{SCRIPT.parents[1]}:{SCRIPT.parent / 'stub'}"
    said = subprocess.run(
        [sys.executable, script, *arguments],
        env={**os.environ, "MRM_SOCKET": str(daemon.socket), "PYTHONPATH": path, **more},
        check=False,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


@pytest.fixture
def device_daemon(machine: Path) -> Iterator[Daemon]:
    """A daemon on that machine."""
    for name in ("runtime", "models"):
        (machine / name).mkdir()
    with run_daemon(machine / "runtime", machine / "models") as daemon:
        yield daemon


def test_weights_on_a_device_are_those_of_the_file(device_daemon: Daemon) -> None:
    found: Any = run(SCRIPT, device_daemon, "small", "cuda:0")
    assert found["device"] == "cuda:0"
    assert found["uuid"].startswith("GPU-f0")
    expected = {name: [dtype, data.hex()] for name, dtype, _, data in small_tensors()}
    assert found["tensors"] == expected


def test_load_file_gives_the_daemons_own_memory(device_daemon: Daemon) -> None:
    # `cuda` is torch's current device, which the stub says is 1.
    for device, ordinal in (("cuda:0", 0), ("cuda", 1)):
        tensors, warned, leases = run(LOADER, device_daemon, "mrm:small", device)
        assert (warned, leases) == ([], 0)
        for name, dtype, _, data in small_tensors():
            place, code, bits, seen = tensors[name]
            if not data:
                assert place == f"empty on {device}"
                continue
            assert (place, seen) == (f"cuda:{ordinal}", data.hex())
            # Elements of 8 bits come as uint8, and are viewed as what they are.
            assert (bits, code) == {
                "F32": (32, 2), "I64": (64, 0), "F64": (64, 2), "F16": (16, 2), "BF16": (16, 4),
                "F8_E4M3": (8, 1), "BOOL": (8, 1), "U16": (16, 1),
            }[dtype]  # fmt: skip


def test_load_file_says_why_it_copies(device_daemon: Daemon) -> None:
    hidden = {"MRM_FAKE_CUDA_INIT_ERROR": "999"}
    tensors, warned, _ = run(LOADER, device_daemon, "mrm:small", "cuda:0", **hidden)
    assert len(warned) == 1
    assert "did not initialise" in warned[0]
    for name, _, _, data in small_tensors():
        place, *_, seen = tensors[name]
        assert (place, seen) == ("copied to cuda:0" if data else "empty on cuda:0", data.hex())
