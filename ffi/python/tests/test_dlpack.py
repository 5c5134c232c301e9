"""Tensors of host memory, lent by DLPack."""

from __future__ import annotations

import gc

import mrm
import numpy as np
import pytest
from conftest import Daemon, payload, small_tensors


@pytest.fixture
def client(daemon: Daemon) -> mrm.Client:
    return mrm.Client(daemon.socket)


def leases(client: mrm.Client, name: str) -> int:
    gc.collect()
    return client.stat(name).leases


def test_numpy_takes_them_read_only_and_without_a_copy(client: mrm.Client) -> None:
    with client.open("small") as model:
        for name, dtype, shape, data in small_tensors():
            lent = model.lend(name)
            assert (lent.device, lent.dtype, lent.shape) == ("cpu", dtype, tuple(shape))
            if dtype in ("BF16", "F8_E4M3"):
                continue  # numpy itself has no such types
            array = np.from_dlpack(lent)
            assert array.tobytes() == data
            assert array.shape == tuple(shape)
            assert not array.flags.writeable or array.size == 0
            if data:
                assert array.__array_interface__["data"][0] == lent.data_ptr
        assert np.asarray(model.lend("longs")).tobytes() == payload("longs", 40)


def test_what_was_taken_keeps_the_lease(client: mrm.Client) -> None:
    model = client.open("small")
    array = np.from_dlpack(model.lend("floats"))
    model.close()
    assert leases(client, "small") == 1
    assert array.tobytes() == payload("floats", 48)
    del array
    assert leases(client, "small") == 0


def test_capsules_that_nobody_takes_give_back_what_they_hold(client: mrm.Client) -> None:
    model = client.open("small")
    lent = model.lend("floats")
    capsules = [lent.__dlpack__(), lent.__dlpack__(max_version=(1, 0))]
    assert '"dltensor"' in repr(capsules[0])
    assert '"dltensor_versioned"' in repr(capsules[1])
    model.close()
    del lent, model
    assert leases(client, "small") == 1
    del capsules[0]
    assert leases(client, "small") == 1
    capsules.clear()
    assert leases(client, "small") == 0


def test_what_is_asked_for_and_cannot_be_is_refused(client: mrm.Client) -> None:
    with client.open("small") as model:
        lent = model.lend("floats")
        assert lent.__dlpack_device__() == (1, 0)
        with pytest.raises(BufferError, match="lent, not copied"):
            lent.__dlpack__(copy=True)
        with pytest.raises(BufferError, match="is on cpu"):
            lent.__dlpack__(dl_device=(2, 0))
        assert not hasattr(lent, "__cuda_array_interface__")
        with pytest.raises(KeyError):
            model.lend("absent")
        assert len(lent) == 3
        with pytest.raises(TypeError):
            len(model.lend("scalar"))
    with pytest.raises(ValueError, match="closed"):
        model.lend("floats")


def test_host_memory_is_what_is_given_unless_a_device_is_asked_for(client: mrm.Client) -> None:
    with client.open("small", device="cpu") as model:
        assert (model.device, model.device_uuid, model.why_host) == ("cpu", None, None)
        model.check()
    with client.open("small", device="best") as model:
        # What it is here depends on the machine; if it is the host's memory, it says why.
        assert (model.device == "cpu") == (model.why_host is not None)
    with pytest.raises(mrm.MrmError, match="names no device"):
        client.open("small", device="gpu")
