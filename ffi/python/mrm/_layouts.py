"""What all tensors of a model are, read out of C at once: one by one costs several times as much."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

from . import _ffi
from ._ffi import lib

# An array type of ctypes for each length would take longer to make than all else here.
_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_memory.restype = ctypes.py_object
_memory.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_READ = 0x100

_STRIDE = ctypes.sizeof(_ffi.Tensor)


class Layouts:
    """What tensors are, each at its place in these lists: many objects wake the collector."""

    __slots__ = ("codes", "devices", "offsets", "places", "segments", "shapes", "sizes")

    def __init__(self, handle: int, count: int) -> None:
        """Of the model ``handle``, which has ``count`` tensors and is open."""
        tensors = bytearray(count * _STRIDE)
        if count:
            lib.check(lib.model_layouts(handle, 0, count, _ffi.Tensor.from_buffer(tensors)))
        #: Names to places, in the order of the files.
        self.places = {name: place for place, name in enumerate(_names(tensors))}
        #: Numbers of ``mrm_dtype_e``.
        self.codes = _column(tensors, _ffi.Tensor.dtype.offset, "I")
        self.shapes = list(_shapes(tensors))
        #: Bytes.
        self.sizes = _column(tensors, _ffi.Tensor.bytes.offset, "Q")
        #: Which segment it lies in, and where there.
        self.segments = _column(tensors, _ffi.Tensor.segment.offset, "I")
        self.offsets = _column(tensors, _ffi.Tensor.offset.offset, "Q")
        #: Numbers of devices in this process, less than 0 in host memory.
        self.devices = _column(tensors, _ffi.Tensor.device.offset, "i")


def _column(tensors: bytearray, offset: int, code: str) -> list[int]:
    """One member of all, an integer as the module ``struct`` calls it."""
    numbers = memoryview(tensors).cast(code)
    return numbers[offset // numbers.itemsize :: _STRIDE // numbers.itemsize].tolist()


def _names(tensors: bytearray) -> Iterator[str]:
    at = _ffi.Tensor.name.offset
    starts = _column(tensors, at + _ffi.Text.data.offset, "Q")
    lengths = _column(tensors, at + _ffi.Text.len.offset, "Q")
    text, first = _view(starts, lengths)
    for start, length in zip(starts, lengths, strict=True):
        begin = start - first
        yield str(text[begin : begin + length], "utf-8") if length else ""


def _shapes(tensors: bytearray) -> Iterator[tuple[int, ...]]:
    starts = _column(tensors, _ffi.Tensor.shape_ptr.offset, "Q")
    ranks = _column(tensors, _ffi.Tensor.rank.offset, "I")
    numbers, first = _view(starts, [rank * 8 for rank in ranks])
    extents = numbers.cast("Q")
    for start, rank in zip(starts, ranks, strict=True):
        begin = (start - first) >> 3
        yield tuple(extents[begin : begin + rank]) if rank else ()


def _view(starts: Sequence[int], sizes: Sequence[int]) -> tuple[memoryview, int]:
    """The memory from the first of these ranges to the last, and where it begins.

    Only what is in the ranges may be read.
    """
    ends = [start + size for start, size in zip(starts, sizes, strict=True) if size]
    if not ends:
        return memoryview(b""), 0
    first = min(start for start, size in zip(starts, sizes, strict=True) if size)
    return _memory(first, max(ends) - first, _READ), first
