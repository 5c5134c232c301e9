"""Arrays that can be written to: private mappings of a model's files."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ._dtypes import as_array
from ._ffi import lib
from ._owned import Owned

if TYPE_CHECKING:
    from ._model import Hold, Model


class _Image(Owned):
    """The private mapping of one file, unmapped when no array refers to it any more."""

    __slots__ = ("_hold",)

    def __init__(self, hold: Hold, handle: int) -> None:
        super().__init__(handle, lib.copy_close)
        # The lease is kept as well, so that the daemon knows that the memory is in use.
        self._hold = hold


def private_image(hold: Hold, index: int) -> memoryview:
    """One file of a model, mapped so that writes stay in this process, in the pages that the model has."""
    copy, data, size = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64()
    lib.check(
        lib.model_segment_copy(
            hold.handle, index, ctypes.byref(copy), ctypes.byref(data), ctypes.byref(size)
        )
    )
    mapped = _Image(hold, copy.value or 0)
    buffer = (ctypes.c_ubyte * size.value).from_address(data.value or 0)
    # The buffer carries the mapping: whoever has a view of it keeps the memory.
    buffer.image = mapped
    return memoryview(buffer).cast("B")


class Copy(Mapping[str, Any]):
    """A model's tensors as numpy arrays that can be written to, which nobody else sees.

    Nothing is copied until it is written, and then 4 KiB at a time. Arrays of one ``Copy`` share its
    memory: asked for a tensor twice, it gives what was written. They outlive it, and the model.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._hold = model.hold()
        self._images: dict[int, memoryview] = {}

    def __getitem__(self, name: str) -> Any:
        return self.tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._model)

    def __len__(self) -> int:
        return len(self._model)

    # A mapping compares its items, which has no meaning for arrays.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def tensor(self, name: str, *, raw: bool = False) -> Any:
        """The tensor ``name`` as an array; ``raw`` as for :meth:`Model.tensor`."""
        found = self._model.layout_of(name)
        return as_array(self._image(found.segment), found.offset, found, raw)

    def _image(self, index: int) -> memoryview:
        image = self._images.get(index)
        if image is None:
            image = self._images[index] = private_image(self._hold, index)
        return image
