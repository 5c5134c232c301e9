"""Models as mappings of arrays."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import mrm
import numpy as np
import pytest
from conftest import Daemon, payload, small_tensors
from mrm._client import _Shared

NUMPY = {"F32": "<f4", "I64": "<i8", "F64": "<f8", "F16": "<f2", "BOOL": "?", "U16": "<u2"}


@pytest.fixture
def client(daemon: Daemon) -> mrm.Client:
    return mrm.Client(daemon.socket)


def leases(client: mrm.Client, name: str) -> int:
    """Over the same connection as the closes, and so after them."""
    gc.collect()
    return client.stat(name).leases


def test_tensors_are_those_of_the_file(client: mrm.Client) -> None:
    with client.open("small") as model:
        assert list(model) == [name for name, *_ in small_tensors()]
        assert (len(model), model.kind, model.name) == (9, "safetensors", "small")
        assert model.metadata == {"format": "np"}
        assert model.files == ["small.safetensors"]
        for name, dtype, shape, data in small_tensors():
            info = model.info(name)
            assert (info.dtype, info.shape, info.nbytes) == (dtype, tuple(shape), len(data))
            if dtype in NUMPY:
                assert model[name].dtype == np.dtype(NUMPY[dtype])
                assert model[name].tobytes() == data
                assert model[name].shape == tuple(shape)


def tensors_of_small(first: Callable[[str], mrm.Model], barrier: threading.Barrier) -> int:
    barrier.wait()
    with first("small") as model:
        return len(model)


def test_the_first_open_connects_and_threads_that_come_first_share_a_session(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRM_SOCKET", str(daemon.socket))
    for first in (mrm.open, lambda name: mrm.open_many([name])[0]):
        shared = _Shared()
        monkeypatch.setattr(mrm, "shared", shared)
        with pytest.raises(mrm.NotFound):
            mrm.open("nobody")
        barrier = threading.Barrier(8)
        with ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(tensors_of_small, first, barrier) for _ in range(8)]
            assert [job.result() for job in jobs] == [9] * 8
        assert leases(shared.get(), "small") == 0


def test_in_host_memory_nothing_is_kept_free(client: mrm.Client) -> None:
    with client.open("small", reserve=1 << 60) as model:
        assert model.name == "small"
    for wrong in (-1, 1 << 64):
        with pytest.raises(ValueError):
            client.open("small", reserve=wrong)


def test_several_are_opened_at_once_or_none(client: mrm.Client) -> None:
    names = ["small", "large", "small"]
    models = client.open_many(names, populate=True)
    assert [model.name for model in models] == names
    with client.open("large", populate=True) as alone:
        assert alone.raw() == models[1].raw()
    for model in models:
        model.close()
    assert client.open_many([]) == []
    with pytest.raises(mrm.NotFound):
        client.open_many(["small", "nobody"])
    with pytest.raises(ValueError):
        client.open_many(["small", "a\0b"])
    assert (leases(client, "small"), leases(client, "large")) == (0, 0)


def test_arrays_are_read_only_views_of_the_image(client: mrm.Client) -> None:
    with client.open("small") as model:
        image = np.frombuffer(model.raw(), np.uint8)
        array = model["floats"]
        place = array.__array_interface__["data"][0] - image.__array_interface__["data"][0]
        assert place == model.info("floats").offset
        assert not array.flags.writeable
        with pytest.raises(ValueError):
            array.flags.writeable = True
        with pytest.raises(TypeError):
            model.raw()[0] = 1
        assert model["floats"] is array


@pytest.mark.parametrize("name", ["small", "sharded"])
def test_tensors_are_the_same_one_by_one_and_all_at_once(client: mrm.Client, name: str) -> None:
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    with client.open(name) as model:
        assert len(model.infos()) == len(model)
        for tensor, array in model.items():
            with client.open(name) as fresh:
                alone = fresh[tensor]
                assert fresh.info(tensor) == model.info(tensor)
            assert array.__array_interface__ == alone.__array_interface__
            assert (array.dtype, array.tobytes()) == (alone.dtype, alone.tobytes())
            for one in (array, alone, array.base):
                with pytest.raises(ValueError):
                    one.flags.writeable = True
            assert model[tensor] is array
        assert model.get("nobody") is None
    with pytest.raises(ValueError, match="closed"):
        model.infos()


def test_types_that_numpy_lacks(client: mrm.Client) -> None:
    with client.open("small") as model:
        assert model.tensor("brain", raw=True).tobytes() == payload("brain", 8)
        assert model.tensor("brain", raw=True).dtype == np.uint16
        assert model.tensor("eight", raw=True).dtype == np.uint8
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
        assert model["brain"].dtype == ml_dtypes.bfloat16
        assert model["eight"].dtype == ml_dtypes.float8_e4m3fn
        assert model["brain"].tobytes() == payload("brain", 8)


def test_without_ml_dtypes_the_error_names_it(
    client: mrm.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrm._dtypes import numpy_dtype

    numpy_dtype.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with client.open("small") as model, pytest.raises(TypeError, match="install ml_dtypes"):
        model["brain"]
    numpy_dtype.cache_clear()


@pytest.mark.parametrize("all_at_once", [False, True])
def test_arrays_outlive_the_model_and_keep_its_lease(
    client: mrm.Client, all_at_once: bool
) -> None:
    before = leases(client, "large")
    model = client.open("large")
    if all_at_once:
        assert list(model) == ["part.0"]
    array = model["part.0"]
    view = array[10:20]
    model.close()
    model.close()
    assert model.closed
    del array
    assert leases(client, "large") == before + 1
    assert view.sum() == 10
    del view
    assert leases(client, "large") == before
    for use in (lambda: model["part.0"], model.raw, lambda: model.name, model.__enter__):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert repr(model) == "<mrm.Model, closed>"


def test_a_model_outlives_its_client(daemon: Daemon) -> None:
    with mrm.Client(daemon.socket) as client:
        model = client.open("small")
    with pytest.raises(ValueError, match="closed"):
        client.open("small")
    assert model["floats"].shape == (3, 4)


def test_two_opens_in_one_process_share_memory(client: mrm.Client) -> None:
    with client.open("small") as first, client.open("small") as second:
        assert np.shares_memory(first["floats"], second["floats"])
        assert first != second
        assert len({first, second}) == 2


def test_what_is_not_there(client: mrm.Client) -> None:
    with pytest.raises(mrm.NotFound) as missing:
        client.open("no such model")
    assert missing.value.code in (200, 201)
    with client.open("small") as model:
        with pytest.raises(KeyError, match="has no tensor `none`"):
            model["none"]
        assert "none" not in model
        assert 3 not in model
        assert model.get("none") is None
        assert "floats" in model
        with pytest.raises(mrm.NotFound):
            model.raw(1)
    again = pickle.loads(pickle.dumps(missing.value))
    assert (type(again), again.code, str(again)) == (
        mrm.NotFound,
        missing.value.code,
        str(missing.value),
    )


def test_bad_names_and_broken_files(client: mrm.Client, daemon: Daemon) -> None:
    with pytest.raises(ValueError, match="NUL"):
        client.open("a\0b")
    with pytest.raises(mrm.MrmError) as bad:
        client.open("../etc/passwd")
    assert (bad.value.code, bad.value.name) == (200, "bad_name")
    with pytest.raises(mrm.BadFormat) as broken:
        client.open("broken")
    assert 400 <= broken.value.code < 500
    with pytest.raises(mrm.BadSource):
        client.open_path(daemon.models / "nothing")
    with pytest.raises(mrm.NoDaemon, match="MRM_SOCKET"):
        mrm.Client(daemon.models / "nothing.sock")


def test_files_of_ones_own(client: mrm.Client, daemon: Daemon) -> None:
    with client.open_path(daemon.models / "small.safetensors") as model:
        assert model["longs"].tobytes() == payload("longs", 40)
    with client.open_path(daemon.models / "sharded") as model:
        assert sorted(model) == ["part.0", "part.1"]
        assert model["part.1"].sum() == 1 << 20


def test_sharded_and_opaque_models(client: mrm.Client, daemon: Daemon) -> None:
    with client.open("sharded") as model:
        assert {model.info(name).segment for name in model} == {0, 1}
        assert model.files[-1] == "model.safetensors.index.json"
        index = (daemon.models / "sharded" / "model.safetensors.index.json").read_bytes()
        assert model.raw(2) == index
    with client.open("blob") as model:
        assert (len(model), model.kind) == (0, "opaque")
        assert model.raw() == (daemon.models / "blob.bin").read_bytes()


def test_the_module_has_a_client_of_its_own(daemon: Daemon) -> None:
    names = [row.name for row in mrm.list()]
    assert {"blob", "broken", "large", "sharded", "small"} <= set(names)
    assert names == sorted(names)
    assert [row.name for row in mrm.list("sm")] == ["small"]
    with mrm.open("small", wait=5):
        row = mrm.stat("small")
    assert (row.state, row.registered, row.pinned) == ("resident", True, False)
    assert row.nbytes == (daemon.models / "small.safetensors").stat().st_size


def test_what_progress_raises_reaches_the_caller(client: mrm.Client) -> None:
    seen: list[tuple[int, int]] = []

    def report(loaded_bytes: int, total_bytes: int) -> None:
        seen.append((loaded_bytes, total_bytes))
        raise RuntimeError("from progress")

    try:
        client.open("small", progress=report).close()
    except RuntimeError as error:
        assert str(error) == "from progress"
        assert len(seen) == 1
    else:
        assert not seen


def test_threads_open_and_read_at_the_same_time(client: mrm.Client) -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        try:
            barrier.wait(20)
            for _ in range(20):
                with client.open("small") as model:
                    assert model["longs"].tobytes() == payload("longs", 40)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_forked_child_reads_and_opens(client: mrm.Client) -> None:
    model = client.open("small")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            same = model["longs"].tobytes() == payload("longs", 40)
            with client.open("large") as other:
                status = 0 if same and other["part.0"].sum() == 1 << 20 else 2
            model.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert model["longs"].tobytes() == payload("longs", 40)
    assert client.stat("small").leases >= 1
    model.close()


def _sum_of_large(_: int) -> float:
    with mrm.open("large") as model:
        return float(model["part.0"].sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_workers_open_for_themselves(daemon: Daemon, method: str) -> None:
    with mrm.open("large"), multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_sum_of_large, range(4)) == [float(1 << 20)] * 4


def test_what_is_mapped_survives_the_daemon(mortal: Daemon) -> None:
    client = mrm.Client(mortal.socket)
    model = client.open("large")
    array = model["part.0"]
    assert model.leased
    mortal.process.kill()
    mortal.process.wait(20)
    assert array.sum() == 1 << 20
    assert model.tensor("part.0", raw=True).any()
    with pytest.raises(mrm.NoDaemon) as gone:
        client.open("small", wait=1)
    assert gone.value.retryable
    assert not model.leased
    model.close()
    assert array[-1] == 1.0
