"""Tensors that other libraries take over: by DLPack, or where CUDA is by its array interface."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from . import _dlpack
from ._dtypes import DTYPES
from ._errors import MrmError
from ._ffi import Tensor as RawTensor
from ._ffi import lib, wait_ms

if TYPE_CHECKING:
    import numpy as np

    from ._model import Hold


class Tensor:
    """A tensor where it lies: on a device, or in host memory. Read-only, and not a copy.

    ``torch.from_dlpack``, ``cupy.from_dlpack`` and ``numpy.from_dlpack`` take it; on a device also
    whatever knows ``__cuda_array_interface__``. It keeps the memory as long as it lives, and so
    does what was made of it. The bytes never change, so no stream need be waited for.

    Of a model that was opened with ``wait="layout"`` it may not be there yet: :meth:`ready` tells,
    and whatever asks for its bytes waits for it.
    """

    __slots__ = ("__weakref__", "_data_ptr", "_hold", "_index", "device", "dtype", "name", "nbytes",
                 "ordinal", "shape")  # fmt: skip

    def __init__(self, hold: Hold, found: RawTensor, *, early: bool = False) -> None:
        self._hold = hold
        self._index = found.index
        dtype = DTYPES.get(found.dtype)
        self.name = str(found.name)
        #: The name that safetensors headers use, such as ``F32`` or ``BF16``.
        self.dtype: str = dtype.name if dtype else f"unknown-{found.dtype}"
        self.shape: tuple[int, ...] = tuple(found.shape_ptr[: found.rank])
        self.nbytes: int = found.bytes
        #: The number of its device in this process; None in host memory.
        self.ordinal: int | None = found.device if found.device >= 0 else None
        #: ``cpu``, or ``cuda:`` and the number.
        self.device = "cpu" if self.ordinal is None else f"cuda:{self.ordinal}"
        # None until it is there.
        self._data_ptr: int | None = None if early else _address(found)

    def ready(self) -> bool:
        """Whether it is there. Does not wait. Raises when the load failed."""
        if self._data_ptr is not None:
            return True
        ready = ctypes.c_bool()
        lib.check(lib.tensor_ready(self._hold.handle, self._index, ctypes.byref(ready)))
        return ready.value

    def wait(self, wait: float | None = None) -> Tensor:
        """Waits until it is there, up to ``wait`` seconds (None: as the open would), and is itself."""
        if self._data_ptr is None:
            found = RawTensor()
            lib.check(lib.tensor_wait(self._hold.handle, self._index, wait_ms(wait)))
            lib.check(lib.model_tensor_at(self._hold.handle, self._index, ctypes.byref(found)))
            self._data_ptr = _address(found)
        return self

    @property
    def data_ptr(self) -> int:
        """Its address in the memory that it lies in."""
        self.wait()
        return self._data_ptr or 0

    def __dlpack_device__(self) -> tuple[int, int]:
        """``(kDLCPU, 0)``, or ``(kDLCUDA, ordinal)``."""
        return (_dlpack.CPU, 0) if self.ordinal is None else (_dlpack.CUDA, self.ordinal)

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule of DLPack.

        With a ``max_version`` of (1, 0) or later it says that the tensor is read-only. Older
        consumers get the older capsule, which cannot say so: a write through it ends the process,
        or on a device the CUDA context.
        """
        if copy:
            raise BufferError(f"`{self.name}` is lent, not copied: copy what you make of it")
        if dl_device is not None and tuple(map(int, dl_device)) != self.__dlpack_device__():
            raise BufferError(
                f"`{self.name}` is on {self.device}, and is not copied elsewhere: open the model "
                "there, or copy what you make of it"
            )
        versioned = max_version is not None and max_version[0] >= 1
        return self._capsule(versioned=versioned)

    def _capsule(self, *, versioned: bool, as_bytes: bool = False) -> Any:
        self.wait()
        try:
            return _dlpack.capsule(
                self._hold.handle, self._index, versioned=versioned, as_bytes=as_bytes
            )
        except MrmError as error:
            if error.name == "dtype_mismatch":
                raise BufferError(f"`{self.name}`: {error}") from error
            raise

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3, read-only. Only on a device, and for types that numpy has."""
        if self.ordinal is None:
            raise AttributeError(f"`{self.name}` is in host memory, not on a CUDA device")
        dtype = next((d for d in DTYPES.values() if d.name == self.dtype), None)
        if dtype is None or not dtype.native:
            raise AttributeError(
                f"the array interface has no type for {self.dtype}; use __dlpack__ instead"
            )
        kind = {"B": "|b", "U": "u", "I": "i", "F": "f", "C": "c"}[self.dtype[0]]
        size = dtype.bits // 8
        order = "" if kind == "|b" else ("|" if size == 1 else "<")
        return {
            "shape": self.shape,
            "typestr": f"{order}{kind}{size}",
            "data": (self.data_ptr, True),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if self.ordinal is not None:
            raise TypeError(
                f"`{self.name}` is on {self.device}, which numpy cannot read: take it with torch "
                "or cupy (from_dlpack), or open the model in host memory"
            )
        import numpy as np

        array = np.from_dlpack(self)
        return array.astype(dtype or array.dtype, copy=bool(copy))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a scalar has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<mrm.Tensor {self.name!r}: {self.dtype} {list(self.shape)} on {self.device}>"


def _address(found: RawTensor) -> int:
    return (found.device_ptr if found.device >= 0 else found.data_ptr) or 0
