"""As much of torch as ``mrm.safetensors`` calls, for machines without torch: it takes capsules as
torch does, and remembers what it was given.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

__version__ = "0 (stub)"


class Type:
    """A ``torch.dtype``."""

    def __init__(self, itemsize: int) -> None:
        self.itemsize = itemsize


bool = float8_e4m3fn = Type(1)  # noqa: A001 - the name of torch
float16 = bfloat16 = uint16 = Type(2)
float32 = Type(4)
int64 = float64 = Type(8)
uint8 = Type(1)

cuda = SimpleNamespace(current_device=lambda: 1)


class device:  # noqa: N801 - the name of torch
    """A ``torch.device``."""

    def __init__(self, name: str | int) -> None:
        text = f"cuda:{name}" if isinstance(name, int) else name
        self.type, _, index = text.partition(":")
        self.index = int(index) if index else None

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


class Taken:
    """A tensor on a device, of a capsule that it consumed."""

    def __init__(self, managed: Any) -> None:
        lent = managed.dl_tensor
        self._managed = managed
        self.address, self.ordinal = lent.data, lent.device_id
        self.code, self.bits = lent.dtype.code, lent.dtype.bits
        self.viewed: Any = None

    def view(self, dtype: Type) -> Taken:
        self.viewed = dtype
        return self

    def __del__(self) -> None:
        self._managed.deleter(ctypes.addressof(self._managed))


def from_dlpack(capsule: Any) -> Taken:
    """Takes a capsule over, which renames it."""
    from mrm import _dlpack

    get, rename = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_SetName
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    rename.restype, rename.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]
    managed = _dlpack._Unversioned.from_address(get(capsule, b"dltensor"))
    rename(capsule, _USED)
    return Taken(managed)


_USED = b"used_dltensor"


def empty(shape: tuple[int, ...], dtype: Type, device: device) -> Any:
    return SimpleNamespace(shape=shape, dtype=dtype, device=device)


def frombuffer(buffer: Any, dtype: Type, count: int, offset: int) -> Any:
    return Copied(bytes(buffer[offset : offset + count * dtype.itemsize]))


class Copied:
    """A tensor of host memory, on its way to a device."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.device: Any = None

    def reshape(self, _: tuple[int, ...]) -> Copied:
        return self

    def to(self, device: device) -> Copied:
        self.device = device
        return self
