"""Models that are open before they are filled, and arrays of one's own."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import mrm
import numpy as np
import pytest
from conftest import Daemon, payload, run_daemon, write_safetensors

MIB = 1 << 20
TENSORS = 16
NAMES = [f"t{i:02}" for i in range(TENSORS)]


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A daemon with one model `m` of 64 MiB, whose reads take a while each where it was built for
    tests (as `scripts/test` does)."""
    for name in ("runtime", "models", "points"):
        (tmp_path / name).mkdir()
    (tmp_path / "points" / "read").write_text("stall 1")
    monkeypatch.setenv("MRM_FAILPOINTS", str(tmp_path / "points"))
    tensors = [
        (name, "F32", [MIB], np.full(MIB, i, "<f4").tobytes()) for i, name in enumerate(NAMES)
    ]
    write_safetensors(tmp_path / "m.safetensors", tensors, {})
    model = ("--model", f"m={tmp_path / 'm.safetensors'}", "--keeper-kind", "none")
    with run_daemon(tmp_path / "runtime", tmp_path / "models", *model) as running:
        try:
            yield running
        finally:
            running.process.send_signal(signal.SIGCONT)


def open_half(daemon: Daemon) -> mrm.Model:
    """The model with its first tensor and not its last; nothing more comes until `go_on`."""
    model = mrm.Client(daemon.socket).open("m", wait=60, wait_for="layout")
    assert model[NAMES[0]][0] == 0
    daemon.process.send_signal(signal.SIGSTOP)
    if model.ready(NAMES[15]):
        pytest.skip("all was there at once: `cargo build --workspace` makes a daemon that stalls")
    return model


def go_on(daemon: Daemon) -> None:
    (daemon.models.parent / "points" / "read").unlink()
    daemon.process.send_signal(signal.SIGCONT)


def test_tensors_come_one_by_one(slow: Daemon) -> None:
    with open_half(slow) as model:
        assert (model.ready(), len(model), model.device) == (False, TENSORS, "cpu")
        assert list(model) == NAMES
        assert model.files == ["m.safetensors"]
        assert model.info(NAMES[15]).shape == (MIB,)
        first = model[NAMES[0]]
        assert (first[0], first[-1], first.flags.writeable) == (0, 0, False)
        assert model.ready(NAMES[0])
        late = model.lend(NAMES[15])
        assert late.nbytes == 4 * MIB
        assert not late.ready()
        for wait in (late.wait, model.wait):
            with pytest.raises(mrm.TimedOut):
                wait(0)
        go_on(slow)
        assert np.from_dlpack(late)[0] == 15
        assert late.ready()
        for i, name in enumerate(NAMES):
            assert model[name][MIB - 1] == i
        model.wait()
        assert model.ready()
        assert len(model.raw()) == model.nbytes
        # Arrays of before and after are the same memory.
        assert np.shares_memory(first, model.tensor(NAMES[0]))
    assert first[7] == 0


def test_a_wait_in_one_thread_lets_others_go_on(slow: Daemon) -> None:
    model = open_half(slow)
    got: list[float] = []
    waits = threading.Event()

    def take() -> None:
        waits.set()
        got.append(float(model[NAMES[15]][3]))

    thread = threading.Thread(target=take)
    thread.start()
    assert waits.wait(60)
    # Were the interpreter's lock held during the wait, nobody would let the daemon go on.
    go_on(slow)
    thread.join(120)
    assert got == [15.0]
    model.close()


def test_what_asks_for_the_whole_waits_for_it(slow: Daemon) -> None:
    with open_half(slow) as model:
        go_on(slow)
        own = model.copy_on_write()
        own[NAMES[3]][0] = -1
        assert (own[NAMES[3]][0], model[NAMES[3]][0]) == (-1, 3)


def test_a_wait_that_is_none_is_refused(daemon: Daemon) -> None:
    client = mrm.Client(daemon.socket)
    with pytest.raises(ValueError, match="layout"):
        client.open("small", wait="everything")  # type: ignore[arg-type]
    with client.open("small", wait="all") as model:
        assert model.ready() and model.ready("floats") and model.lend("floats").ready()
        with pytest.raises(KeyError):
            model.ready("none")


def test_a_copy_is_written_to_by_its_owner_alone(daemon: Daemon) -> None:
    client = mrm.Client(daemon.socket)
    with client.open("small") as model:
        one, two = model.copy_on_write(), model.copy_on_write()
        assert list(one) == list(model) and len(one) == 9
        array = one["longs"]
        assert array.flags.writeable and array.tobytes() == payload("longs", 40)
        array[:] = 7
        assert (one["longs"] == 7).all()
        assert two["longs"].tobytes() == model["longs"].tobytes() == payload("longs", 40)
        assert one.tensor("brain", raw=True).dtype == np.uint16
        assert one["scalar"].shape == () and one["empty"].shape == (0, 3)
    del one, model
    gc.collect()
    # The array outlives the copy and the model, and keeps the lease.
    assert (array == 7).all()
    assert client.stat("small").leases >= 1
    child = os.fork()
    if child == 0:
        array[0] = 9
        os._exit(0 if array[0] == 9 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert array[0] == 7
