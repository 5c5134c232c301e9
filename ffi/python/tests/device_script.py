"""Opens the model named on the command line on a device, and tells what it finds as JSON.

Run by tests in a process of its own, which has the fake CUDA driver: there a device's addresses are
addresses of the process, so that this can look at the bytes behind them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import warnings
from typing import Any

import mrm

READ_ONLY, CUDA = 1, 2


def take(tensor: mrm.Tensor, max_version: tuple[int, int] | None) -> tuple[Any, Any]:
    """What a consumer of DLPack gets: the capsule, and the struct in it."""
    from mrm import _dlpack

    capsule = tensor.__dlpack__(stream=1, max_version=max_version, dl_device=None, copy=False)
    versioned = max_version is not None and max_version >= (1, 0)
    name, kind = _dlpack._KINDS[0 if versioned else 1]
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return capsule, kind.from_address(get(capsule, name))


def refused(error: type[BaseException], call: Any) -> str:
    """The text of the exception that must come."""
    try:
        call()
    except error as raised:
        return str(raised)
    raise AssertionError("nothing was raised")


def check_tensor(tensor: mrm.Tensor) -> str:
    """Looks at a tensor in every way that a consumer may; its bytes, in hexadecimal."""
    assert tensor.device == f"cuda:{tensor.ordinal}"
    assert tensor.__dlpack_device__() == (CUDA, tensor.ordinal)
    if tensor.nbytes:
        assert tensor.data_ptr % 256 == 0
    for max_version in ((1, 0), (1, 3), None, (0, 8)):
        _, managed = take(tensor, max_version)
        lent = managed.dl_tensor
        assert (lent.data or 0, lent.device_id) == (tensor.data_ptr, tensor.ordinal)
        shape = (ctypes.c_int64 * lent.ndim).from_address(lent.shape) if lent.ndim else ()
        assert tuple(shape) == tensor.shape
        if hasattr(managed, "flags"):
            assert (managed.flags, managed.major) == (READ_ONLY, 1)
    assert "lent" in refused(BufferError, lambda: tensor.__dlpack__(copy=True))
    assert tensor.device in refused(BufferError, lambda: tensor.__dlpack__(dl_device=(1, 0)))
    assert "which numpy cannot read" in refused(TypeError, tensor.__array__)
    interface = getattr(tensor, "__cuda_array_interface__", None)
    if interface is not None:
        assert interface["data"] == (tensor.data_ptr, True)
        assert (interface["version"], interface["shape"]) == (3, tensor.shape)
    return ctypes.string_at(tensor.data_ptr, tensor.nbytes).hex()


def main() -> None:
    """Tells what is on the device, once everything about it was found right."""
    name, device = sys.argv[1:]
    model = mrm.open(name, device=device)
    found = {info.name: [info.dtype, check_tensor(model[info.name])] for info in model.infos()}
    first = model[next(iter(model))]
    assert model[first.name] is first
    assert "its files are not in host memory" in refused(TypeError, model.raw)
    assert "its bits" in refused(TypeError, lambda: model.tensor(first.name, raw=True))
    assert model.why_host is None
    model.check()
    about = {"device": model.device, "uuid": model.device_uuid, "nbytes": model.nbytes}
    # A capsule that nobody took keeps the memory, and gives it back.
    capsule, managed = take(first, (1, 0))
    address, head = managed.dl_tensor.data, check_tensor(first)[:2]
    model.close()
    del first, model, managed
    gc.collect()
    assert ctypes.string_at(address, 1).hex() == head
    del capsule
    gc.collect()
    assert mrm.release_deferred() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mrm.open(name, device="best").device == device
    with mrm.open(name, device=device, reserve=1 << 20) as keeping:
        assert keeping.device == device
    too_much = refused(mrm.NoRoom, lambda: mrm.open(name, device=device, reserve=1 << 60))
    assert "to stay free" in too_much, too_much
    hidden = refused(mrm.NoDevice, lambda: mrm.open(name, device=7))
    assert "cuda:7 is not visible" in hidden, hidden
    print(json.dumps({**about, "tensors": found}))


if __name__ == "__main__":
    main()
