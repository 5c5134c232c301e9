"""What all tensors of a model are, read out of C at once: one by one costs several times as much."""

from __future__ import annotations

import ctypes

from . import _ffi
from ._ffi import lib

# An array type of ctypes for each length would take longer to make than all else here.
_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_memory.restype = ctypes.py_object
_memory.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_READ = 0x100

_STRIDE = ctypes.sizeof(_ffi.Tensor)


class Layouts:
    """What tensors are, each at its place in these: many objects wake the collector."""

    __slots__ = ("codes", "devices", "offsets", "places", "segments", "shapes", "sizes")

    def __init__(self, handle: int, count: int) -> None:
        """Of the model ``handle``, which has ``count`` tensors and is open."""
        tensors = bytearray(count * _STRIDE)
        if count:
            lib.check(lib.model_layouts(handle, 0, count, _ffi.Tensor.from_buffer(tensors)))
        view = memoryview(tensors)
        narrow, wide = view.cast("I"), view.cast("Q")
        #: Names to places, in the order of the files.
        self.places = dict(zip(_names(wide), range(count), strict=True))
        #: Numbers of ``mrm_dtype_e``.
        self.codes = _column(narrow, _ffi.Tensor.dtype.offset)
        self.shapes = _shapes(wide, _column(narrow, _ffi.Tensor.rank.offset))
        #: Bytes.
        self.sizes = _column(wide, _ffi.Tensor.bytes.offset)
        #: Which segment it lies in, and where there.
        self.segments = _column(narrow, _ffi.Tensor.segment.offset)
        self.offsets = _column(wide, _ffi.Tensor.offset.offset)
        #: Numbers of devices in this process, less than 0 in host memory.
        self.devices = _column(view.cast("i"), _ffi.Tensor.device.offset)


def _column(tensors: memoryview, offset: int) -> memoryview:
    """One member of all, of the size that ``tensors`` has items of."""
    size = tensors.itemsize
    return tensors[offset // size :: _STRIDE // size]


def _names(tensors: memoryview) -> list[str]:
    at = _ffi.Tensor.name.offset
    starts = _column(tensors, at + _ffi.Text.data.offset).tolist()
    lengths = _column(tensors, at + _ffi.Text.len.offset).tolist()
    text, begins, ends = _ranges(starts, lengths)
    if sum(lengths) == len(text):
        # They lie one behind the other.
        whole = str(text, "utf-8")
        if len(whole) == len(text):
            return [whole[begin:end] for begin, end in zip(begins, ends, strict=True)]
    return [str(text[begin:end], "utf-8") for begin, end in zip(begins, ends, strict=True)]


def _shapes(tensors: memoryview, ranks: memoryview) -> list[tuple[int, ...]]:
    starts = _column(tensors, _ffi.Tensor.shape_ptr.offset).tolist()
    sizes = [rank * 8 for rank in ranks]
    numbers, begins, ends = _ranges(starts, sizes)
    extents = numbers.cast("Q")
    if sum(sizes) == len(numbers):
        whole = tuple(extents)
        return [whole[begin >> 3 : end >> 3] for begin, end in zip(begins, ends, strict=True)]
    return [tuple(extents[begin >> 3 : end >> 3]) for begin, end in zip(begins, ends, strict=True)]


def _ranges(starts: list[int], sizes: list[int]) -> tuple[memoryview, list[int], list[int]]:
    """The memory from the first of these ranges to the last, and where in it they begin and end.

    Only what is in the ranges may be read; those without bytes may be anywhere.
    """
    if 0 in sizes:
        some = next((start for start, size in zip(starts, sizes, strict=True) if size), 0)
        starts = [start if size else some for start, size in zip(starts, sizes, strict=True)]
    first = min(starts, default=0)
    begins = [start - first for start in starts]
    ends = [begin + size for begin, size in zip(begins, sizes, strict=True)]
    length = max(ends, default=0)
    return (_memory(first, length, _READ) if length else memoryview(b"")), begins, ends
