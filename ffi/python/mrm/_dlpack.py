"""Capsules of DLPack, made of what ``libmrm`` lends.

https://data-apis.org/array-api/latest/API_specification/generated/array_api.array.__dlpack__.html
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_int32, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any

from ._ffi import lib

CPU, CUDA = 1, 2

_DELETER = ctypes.CFUNCTYPE(None, c_void_p)
_VERSIONED, _UNVERSIONED = b"dltensor_versioned", b"dltensor"
_UINT = 1


class _DType(ctypes.Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class _Tensor(ctypes.Structure):
    """``mrm_dl_tensor_t``"""

    _fields_ = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("dtype", _DType),
        ("shape", c_void_p),
        ("strides", c_void_p),
        ("byte_offset", c_uint64),
    ]


class _Managed(ctypes.Structure):
    """``mrm_dl_managed_t``"""

    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("manager_ctx", c_void_p),
        ("deleter", _DELETER),
        ("flags", c_uint64),
        ("dl_tensor", _Tensor),
    ]


class _Unversioned(ctypes.Structure):
    """``mrm_dl_unversioned_t``"""

    _fields_ = [("dl_tensor", _Tensor), ("manager_ctx", c_void_p), ("deleter", _DELETER)]


_KINDS: tuple[tuple[bytes, type[ctypes.Structure]], ...] = (
    (_VERSIONED, _Managed),
    (_UNVERSIONED, _Unversioned),
)

_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [c_void_p, c_char_p, c_void_p]
# The capsule as a plain address: it is being destroyed, and must not be referred to.
_is_valid = ctypes.PYFUNCTYPE(c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer_of = ctypes.PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@ctypes.PYFUNCTYPE(None, c_void_p)
def _discard(capsule: int) -> None:
    """Gives back what nobody took: who takes a tensor renames its capsule."""
    for name, kind in _KINDS:
        if _is_valid(capsule, name):
            address = _pointer_of(capsule, name)
            kind.from_address(address).deleter(address)


# A capsule may outlive this module, at the end of the interpreter, and needs these.
for _kept in (_discard, _VERSIONED, _UNVERSIONED):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_kept))


def capsule(handle: int, index: int, *, versioned: bool, as_bytes: bool = False) -> Any:
    """The tensor at ``index`` of a model; ``as_bytes``: elements of 8 bits as ``uint8``."""
    lend = lib.tensor_dlpack if versioned else lib.tensor_dlpack_unversioned
    managed = c_void_p()
    lib.check(lend(handle, index, ctypes.byref(managed)))
    name, kind = _KINDS[0 if versioned else 1]
    if as_bytes:
        kind.from_address(managed.value or 0).dl_tensor.dtype.code = _UINT
    return _new(managed, name, ctypes.cast(_discard, c_void_p))
