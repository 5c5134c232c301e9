"""What is read of the arrays that C describes tensors in."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

import pytest
from mrm import _layouts
from mrm._ffi import Tensor

TENSORS = [("w", (3, 4)), ("", ()), ("größe", (2**40,)), ("b", (0, 7)), ("scalar", ())]


def described(place: Callable[[bytes], int]) -> memoryview:
    """The arrays of C for ``TENSORS``, each name and shape where ``place`` puts its bytes."""
    tensors = (Tensor * len(TENSORS))()
    for tensor, (name, shape) in zip(tensors, TENSORS, strict=True):
        text = name.encode()
        tensor.name.data, tensor.name.len = place(text), len(text)
        extents = b"".join(extent.to_bytes(8, "little") for extent in shape)
        address = place(extents)
        tensor.shape_ptr = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint64))
        tensor.rank = len(shape)
    return memoryview(tensors).cast("B").cast("Q")


def check(wide: memoryview) -> None:
    """That what is read of it is what was put there."""
    ranks = _layouts._column(wide.cast("B").cast("I"), Tensor.rank.offset)
    assert _layouts._names(wide) == [name for name, _ in TENSORS]
    assert _layouts._shapes(wide, ranks) == [shape for _, shape in TENSORS]


@pytest.mark.parametrize("empty", [0, 1 << 63])
def test_names_and_shapes_may_lie_in_one_piece(empty: int) -> None:
    pieces = {0: ctypes.create_string_buffer(256), 1: ctypes.create_string_buffer(256)}
    ends = [0, 0]
    calls = iter(range(2 * len(TENSORS)))

    def place(text: bytes) -> int:
        kind = next(calls) % 2
        if not text:
            return empty
        address = ctypes.addressof(pieces[kind]) + ends[kind]
        ctypes.memmove(address, text, len(text))
        ends[kind] += len(text)
        return address

    check(described(place))


def test_what_is_between_them_is_not_read() -> None:
    # Each at the end of a page, behind which is one that cannot be read.
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, page * 4 * len(TENSORS))
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    pages = iter(range(2 * len(TENSORS)))

    def place(text: bytes) -> int:
        readable = start + page * 2 * next(pages)
        assert protect(readable + page, page, 0) == 0
        address = readable + page - len(text)
        ctypes.memmove(address, text, len(text))
        return address

    check(described(place))


def test_of_no_tensors_there_is_nothing() -> None:
    none = memoryview(b"").cast("Q")
    assert _layouts._names(none) == []
    assert _layouts._shapes(none, none) == []
