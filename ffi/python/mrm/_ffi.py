"""``mrm.h`` in ctypes: the same structs, in the same order, and nothing of its own.

``tests/test_header.py`` compares this file with the header.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_int,
    c_int32,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)

from ._errors import class_of

ABI_VERSION = 0


class Text(Structure):
    """``mrm_text_t``"""

    _fields_ = [("data", c_void_p), ("len", c_size_t)]

    def __str__(self) -> str:
        return ctypes.string_at(self.data, self.len).decode() if self.len else ""


PROGRESS = CFUNCTYPE(None, c_uint64, c_uint64, c_void_p)


class OpenOptions(Structure):
    """``mrm_open_options_t``"""

    _fields_ = [
        ("size", c_size_t),
        ("wait_ms", c_uint64),
        ("progress", PROGRESS),
        ("user", c_void_p),
        ("tier", c_uint32),
        ("reserved", c_uint32),
        ("device", c_char_p),
        ("populate", c_uint32),
        ("wait_for", c_uint32),
        ("reserve_bytes", c_uint64),
    ]


class ModelInfo(Structure):
    """``mrm_model_info_t``"""

    _fields_ = [
        ("size", c_size_t),
        ("name", Text),
        ("version", c_uint64),
        ("kind", c_uint32),
        ("origin", c_uint32),
        ("bytes", c_uint64),
        ("tensors", c_size_t),
        ("segments", c_size_t),
        ("metadata", c_size_t),
        ("took_us", c_uint64),
    ]


class Tensor(Structure):
    """``mrm_tensor_t``"""

    _fields_ = [
        ("name", Text),
        ("dtype", c_uint32),
        ("rank", c_uint32),
        ("shape_ptr", POINTER(c_uint64)),
        ("data_ptr", c_void_p),
        ("bytes", c_uint64),
        ("segment", c_uint32),
        ("device", c_int32),
        ("offset", c_uint64),
        ("device_ptr", c_uint64),
        ("index", c_size_t),
    ]


class Device(Structure):
    """``mrm_device_t``"""

    _fields_ = [
        ("size", c_size_t),
        ("uuid", c_uint8 * 16),
        ("ordinal", c_uint32),
        ("sharing", c_uint32),
        ("bytes", c_uint64),
        ("allocations", c_size_t),
    ]


class Allocation(Structure):
    """``mrm_allocation_t``"""

    _fields_ = [("device_ptr", c_uint64), ("bytes", c_uint64)]


class Segment(Structure):
    """``mrm_segment_t``"""

    _fields_ = [("data_ptr", c_void_p), ("bytes", c_uint64)]


class Stat(Structure):
    """``mrm_stat_t``"""

    _fields_ = [
        ("size", c_size_t),
        ("name", Text),
        ("bytes", c_uint64),
        ("leases", c_uint64),
        ("version", c_uint64),
        ("state", c_uint32),
        ("registered", c_bool),
        ("pinned", c_bool),
        ("has_version", c_bool),
    ]


LIST = CFUNCTYPE(c_bool, POINTER(Stat), c_void_p)


class Error(Structure):
    """``mrm_error_t``"""

    _fields_ = [
        ("number", c_uint32),
        ("retryable", c_bool),
        ("took_effect", c_bool),
        ("name", c_char_p),
        ("message", c_char_p),
    ]


#: As a wait in milliseconds: as long as the library waits by default.
WAIT_DEFAULT = 2**64 - 1


def wait_ms(wait: float | None) -> int:
    """Seconds as C has them; None is the library's default."""
    return WAIT_DEFAULT if wait is None else max(0, round(wait * 1000))


#: name -> (result, arguments, whether it may block). Those that may not are called without
#: releasing the interpreter's lock, which would cost more than the call.
FUNCTIONS: dict[str, tuple[object, list[object], bool]] = {
    "mrm_abi_version": (c_uint32, [], False),
    "mrm_version": (c_char_p, [], False),
    "mrm_last_error": (c_int, [POINTER(Error)], False),
    "mrm_dtype_name": (Text, [c_uint32], False),
    "mrm_dtype_bits": (c_uint32, [c_uint32], False),
    "mrm_client_connect": (c_int, [c_char_p, POINTER(c_void_p)], True),
    "mrm_client_connect_open": (
        c_int,
        [c_char_p, c_char_p, POINTER(OpenOptions), POINTER(c_void_p), POINTER(c_void_p)],
        True,
    ),
    "mrm_client_close": (c_int, [c_void_p], True),
    "mrm_client_open": (
        c_int,
        [c_void_p, c_char_p, POINTER(OpenOptions), POINTER(c_void_p)],
        True,
    ),
    "mrm_client_open_many": (
        c_int,
        [c_void_p, POINTER(c_char_p), c_size_t, POINTER(OpenOptions), POINTER(c_void_p)],
        True,
    ),
    "mrm_client_open_path": (
        c_int,
        [c_void_p, c_char_p, POINTER(OpenOptions), POINTER(c_void_p)],
        True,
    ),
    "mrm_client_list": (c_int, [c_void_p, c_char_p, LIST, c_void_p], True),
    "mrm_client_stat": (c_int, [c_void_p, c_char_p, POINTER(Stat)], True),
    "mrm_client_hint": (c_int, [c_void_p, c_char_p, c_uint64], True),
    "mrm_model_clone": (c_int, [c_void_p, POINTER(c_void_p)], False),
    "mrm_model_close": (c_int, [c_void_p], True),
    "mrm_model_info": (c_int, [c_void_p, POINTER(ModelInfo)], False),
    "mrm_model_tensor_at": (c_int, [c_void_p, c_size_t, POINTER(Tensor)], False),
    "mrm_model_tensor_find": (c_int, [c_void_p, c_char_p, c_size_t, POINTER(Tensor)], False),
    "mrm_model_tensors": (c_int, [c_void_p, c_size_t, c_size_t, POINTER(Tensor)], False),
    "mrm_model_layout_at": (c_int, [c_void_p, c_size_t, POINTER(Tensor)], False),
    "mrm_model_layout_find": (c_int, [c_void_p, c_char_p, c_size_t, POINTER(Tensor)], False),
    "mrm_model_layouts": (c_int, [c_void_p, c_size_t, c_size_t, POINTER(Tensor)], False),
    "mrm_tensor_ready": (c_int, [c_void_p, c_size_t, POINTER(c_bool)], False),
    "mrm_tensor_wait": (c_int, [c_void_p, c_size_t, c_uint64], True),
    "mrm_model_whole": (c_int, [c_void_p, POINTER(c_bool)], False),
    "mrm_model_wait": (c_int, [c_void_p, c_uint64], True),
    "mrm_model_segment_copy": (
        c_int,
        [c_void_p, c_size_t, POINTER(c_void_p), POINTER(c_void_p), POINTER(c_uint64)],
        False,
    ),
    "mrm_copy_close": (c_int, [c_void_p], True),
    "mrm_model_metadata_at": (c_int, [c_void_p, c_size_t, POINTER(Text), POINTER(Text)], False),
    "mrm_model_metadata_find": (c_int, [c_void_p, c_char_p, c_size_t, POINTER(Text)], False),
    "mrm_model_segment_at": (c_int, [c_void_p, c_size_t, POINTER(Segment)], False),
    "mrm_model_segment_name": (c_int, [c_void_p, c_size_t, POINTER(Text)], False),
    "mrm_model_segment_dup_fd": (c_int, [c_void_p, c_size_t, POINTER(c_int)], False),
    "mrm_model_device": (c_int, [c_void_p, POINTER(Device)], False),
    "mrm_model_allocation_at": (c_int, [c_void_p, c_size_t, POINTER(Allocation)], False),
    "mrm_model_why_host": (c_int, [c_void_p, POINTER(Text)], False),
    "mrm_model_lost": (c_int, [c_void_p], False),
    "mrm_model_leased": (c_int, [c_void_p, POINTER(c_bool)], False),
    "mrm_model_close_on": (c_int, [POINTER(c_void_p), POINTER(c_void_p), c_size_t], True),
    "mrm_release_deferred": (c_int, [POINTER(c_size_t)], True),
    "mrm_tensor_dlpack": (c_int, [c_void_p, c_size_t, POINTER(c_void_p)], False),
    "mrm_tensor_dlpack_unversioned": (c_int, [c_void_p, c_size_t, POINTER(c_void_p)], False),
}


def library_path() -> str:
    """Which library is loaded: ``MRM_LIBRARY``, else the one in the wheel, else the system's."""
    named = os.environ.get("MRM_LIBRARY")
    if named:
        return named
    # Not by `pathlib`, which would take half of the time that the package takes to import.
    bundled = os.path.join(os.path.dirname(__file__), "_lib", "libmrm.so")
    return bundled if os.path.exists(bundled) else "libmrm.so.0"


class Library:
    """The functions of the header, as attributes without their prefix."""

    def __init__(self, path: str) -> None:
        try:
            releasing, keeping = ctypes.CDLL(path), ctypes.PyDLL(path)
        except OSError as error:
            raise ImportError(
                f"cannot load libmrm from {path}: {error}; install the mrm wheel or libmrm, or "
                "set MRM_LIBRARY to the path of libmrm.so"
            ) from error
        for name, (result, arguments, blocks) in FUNCTIONS.items():
            try:
                function = getattr(releasing if blocks else keeping, name)
            except AttributeError as error:
                raise ImportError(
                    f"{path} has no {name}: it is not the libmrm of this package; unset "
                    "MRM_LIBRARY, or point it to the right one"
                ) from error
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("mrm_"), function)
        found = self.abi_version()  # type: ignore[attr-defined]
        if found != ABI_VERSION:
            raise ImportError(
                f"{path} has version {found} of the C interface, this package needs "
                f"{ABI_VERSION}; install the libmrm that came with the package"
            )

    def check(self, number: int) -> None:
        """Raises the exception for a result that is not 0."""
        if number:
            raise self._failure(number)

    def _failure(self, number: int) -> Exception:
        error = Error()
        self.last_error(ctypes.byref(error))  # type: ignore[attr-defined]
        message = (error.message or b"").decode(errors="replace")
        name = (error.name or b"unknown").decode()
        return class_of(number)(message, number, name, error.retryable, error.took_effect)


lib = Library(library_path())
