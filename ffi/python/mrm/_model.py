"""Open models: mappings of names to arrays that lie in the daemon's memory."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _ffi
from ._dtypes import DTYPES, numpy_dtype, raw_view
from ._ffi import lib
from ._tensor import Tensor

if TYPE_CHECKING:
    import numpy as np

_KINDS = {0: "opaque", 1: "safetensors"}
_NO_SUCH_ITEM = 903
_ORIGINS = {0: "hit", 1: "loaded", 2: "joined", 3: "promoted"}


class TensorInfo(NamedTuple):
    """What a tensor is, without an array of it."""

    name: str
    #: The name that safetensors headers use, such as ``F32`` or ``BF16``.
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    #: Which segment it lies in, and where.
    segment: int
    offset: int


class Hold:
    """A model handle of the C interface, closed when nothing refers to it any more.

    Every buffer refers to it, so that the memory outlives ``Model.close`` for as long as an array
    needs it. Not closed at the interpreter's exit: the arrays of other threads may still be read
    then, and the end of the process gives the lease back anyway.
    """

    __slots__ = ("__weakref__", "handle")

    def __init__(self, handle: int) -> None:
        self.handle = handle
        weakref.finalize(self, lib.model_close, handle).atexit = False


class Model(Mapping[str, Any]):
    """An open model: a context manager, and a mapping of tensor names to numpy arrays, or on a
    device to :class:`mrm.Tensor`.

    The arrays are read-only, are not copies, and are made when asked for. Those that were given
    out stay valid after :meth:`close`, which gives up only this object's own hold; the lease ends
    with the last of them. Safe to use from several threads, and, in host memory, in a forked child.

    What is on a device is unmapped when the last hold is gone, after the work that this process
    queued on the device. While a stream is captured into a graph that is put off, until a later
    open or close on a device, or :func:`mrm.release_deferred`. A graph keeps no hold on the
    weights: keep the model as long as the graph is launched.
    """

    def __init__(self, handle: int) -> None:
        self._hold: Hold | None = Hold(handle)
        self._details: _ffi.ModelInfo | None = None
        self._images: dict[int, memoryview] = {}
        self._names: list[str] | None = None
        self._arrays: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()

    # What it is.

    @property
    def name(self) -> str:
        """The name it was opened by, or the label of local files."""
        return str(self._info().name)

    @property
    def version(self) -> int:
        """The immutable version behind the name: one number for one content."""
        return int(self._info().version)

    @property
    def kind(self) -> str:
        """``safetensors`` or ``opaque``."""
        return _KINDS.get(self._info().kind, "unknown")

    @property
    def origin(self) -> str:
        """What the open cost: ``hit``, ``loaded``, or ``joined`` (another one's load)."""
        return _ORIGINS.get(self._info().origin, "unknown")

    @property
    def nbytes(self) -> int:
        """Bytes of all files; on a device, of all allocations."""
        return int(self._info().bytes)

    @property
    def took_us(self) -> int:
        """What the daemon took for the open, in microseconds."""
        return int(self._info().took_us)

    @property
    def device(self) -> str:
        """Where the weights are: ``cpu``, or ``cuda:`` and the device's number in this process."""
        place = self._device()
        return "cpu" if place is None else f"cuda:{place.ordinal}"

    @property
    def device_uuid(self) -> str | None:
        """The UUID of that device; None in host memory."""
        place = self._device()
        if place is None:
            return None
        text = bytes(place.uuid).hex()
        return "GPU-" + "-".join(
            (text[:8], text[8:12], text[12:16], text[16:20], text[20:])
        )

    @property
    def why_host(self) -> str | None:
        """Why it is in host memory although a device would have been liked."""
        why = _ffi.Text()
        lib.check(lib.model_why_host(self._handle(), ctypes.byref(why)))
        return str(why) or None

    @property
    def leased(self) -> bool:
        """Whether the daemon counts it as in use now, as far as is known.

        Not so while no daemon runs, and never again once one came that did not take over what the
        last one lent. What is mapped stays readable all the same.
        """
        leased = ctypes.c_bool()
        lib.check(lib.model_leased(self._handle(), ctypes.byref(leased)))
        return leased.value

    def check(self) -> None:
        """Raises if what is mapped is of no use any more: its device was lost."""
        lib.check(lib.model_lost(self._handle()))

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the files."""
        handle, key, value = self._handle(), _ffi.Text(), _ffi.Text()
        pairs: dict[str, str] = {}
        for index in range(self._info().metadata):
            lib.check(
                lib.model_metadata_at(handle, index, ctypes.byref(key), ctypes.byref(value))
            )
            pairs.setdefault(str(key), str(value))
        return pairs

    @property
    def files(self) -> list[str]:
        """Names of the files, in the order of :meth:`raw`."""
        handle, name, names = self._handle(), _ffi.Text(), []
        for index in range(self._info().segments):
            lib.check(lib.model_segment_name(handle, index, ctypes.byref(name)))
            names.append(str(name))
        return names

    # Tensors.

    def __getitem__(self, name: str) -> Any:
        array = self._arrays.get(name)
        if array is None:
            array = self._arrays[name] = self.tensor(name)
        elif self._hold is None:
            raise self._closed()
        return array

    def __iter__(self) -> Iterator[str]:
        if self._names is None:
            self._names = [str(tensor.name) for tensor in self._all()]
        return iter(self._names)

    def __len__(self) -> int:
        return int(self._info().tensors)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        try:
            self._find(name)
        except KeyError:
            return False
        return True

    # A mapping compares its items, which has no meaning for arrays.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def tensor(self, name: str, *, raw: bool = False) -> Any:
        """The tensor ``name`` as an array; with ``raw``, its bits as unsigned integers.

        ``raw`` shows types that numpy does not have: 16-bit floats as ``uint16``, 8-bit floats as
        ``uint8``, and elements that do not fill bytes as one row of bytes.

        On a device it is a :class:`mrm.Tensor`, and there is no ``raw``.
        """
        found = self._find(name)
        if found.device >= 0:
            if raw:
                raise TypeError(f"`{name}` is on {self.device}: its bits are not in host memory")
            return Tensor(self.hold(), found)
        import numpy as np

        shape = tuple(found.shape_ptr[: found.rank])
        dtype: Any
        if raw:
            dtype, shape = raw_view(found.dtype, shape, found.bytes)
        else:
            dtype = numpy_dtype(found.dtype)
        # Not `np.ndarray(buffer=...)`: that looks through the view at the buffer underneath, and
        # would let a caller make the array writeable, to die of a fault at the first write.
        count = math.prod(shape)
        return np.frombuffer(self.raw(found.segment), dtype, count, found.offset).reshape(shape)

    def lend(self, name: str) -> Tensor:
        """The tensor ``name`` for other libraries, by DLPack, in whichever memory it lies."""
        return Tensor(self.hold(), self._find(name))

    def info(self, name: str) -> TensorInfo:
        """What the tensor ``name`` is, without an array of it."""
        return _describe(self._find(name))

    def infos(self) -> list[TensorInfo]:
        """What all tensors are, in the order of the files."""
        return [_describe(tensor) for tensor in self._all()]

    # Files.

    def raw(self, index: int = 0) -> memoryview:
        """The exact image of one file, read-only. Stays valid after :meth:`close`."""
        if self._hold is None:
            raise self._closed()
        self._need_host()
        image = self._images.get(index)
        if image is None:
            segment = self._segment(index)
            # The buffer carries the hold: whoever has a view of it keeps the memory.
            buffer = (ctypes.c_ubyte * segment.bytes).from_address(segment.data_ptr)
            buffer.hold = self._hold
            image = self._images[index] = memoryview(buffer).toreadonly().cast("B")
        return image

    def file_descriptor(self, index: int = 0) -> int:
        """A descriptor of the memory behind one file, open for reading; the caller closes it."""
        self._need_host()
        fd = ctypes.c_int(-1)
        lib.check(lib.model_segment_dup_fd(self._handle(), index, ctypes.byref(fd)))
        return fd.value

    def hold(self) -> Hold:
        """What keeps the lease: for mappings of one's own that must not outlive it."""
        if self._hold is None:
            raise self._closed()
        return self._hold

    # Its end.

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._hold is None

    def close(self) -> None:
        """Gives up this object's hold. Arrays that were given out keep the memory."""
        self._hold = None
        self._images = {}

    def __enter__(self) -> Model:
        if self._hold is None:
            raise self._closed()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._hold is None:
            return "<mrm.Model, closed>"
        return f"<mrm.Model {self.name!r}: {len(self)} tensors, {self.nbytes} bytes>"

    # Inside.

    def _closed(self) -> ValueError:
        return ValueError("this model is closed; open it again")

    def _handle(self) -> int:
        if self._hold is None:
            raise self._closed()
        return self._hold.handle

    def _device(self) -> _ffi.Device | None:
        place = _ffi.Device(size=ctypes.sizeof(_ffi.Device))
        number = lib.model_device(self._handle(), ctypes.byref(place))
        if number == _NO_SUCH_ITEM:
            return None
        lib.check(number)
        return place

    def _need_host(self) -> None:
        if self._info().segments == 0:
            raise TypeError(
                f"`{self.name}` is on {self.device}: its files are not in host memory; open it "
                "without a device"
            )

    def _info(self) -> _ffi.ModelInfo:
        handle = self._handle()
        if self._details is None:
            details = _ffi.ModelInfo(size=ctypes.sizeof(_ffi.ModelInfo))
            lib.check(lib.model_info(handle, ctypes.byref(details)))
            self._details = details
        return self._details

    def _find(self, name: str) -> _ffi.Tensor:
        encoded, tensor = name.encode(errors="surrogatepass"), _ffi.Tensor()
        lib.check(
            lib.model_tensor_find(self._handle(), encoded, len(encoded), ctypes.byref(tensor))
        )
        return tensor

    def _all(self) -> Any:
        count = self._info().tensors
        tensors = (_ffi.Tensor * count)()
        lib.check(lib.model_tensors(self._handle(), 0, count, tensors))
        return tensors

    def _segment(self, index: int) -> _ffi.Segment:
        if index < 0:
            raise IndexError("segments count from 0")
        segment = _ffi.Segment()
        lib.check(lib.model_segment_at(self._handle(), index, ctypes.byref(segment)))
        return segment


def _describe(tensor: _ffi.Tensor) -> TensorInfo:
    dtype = DTYPES.get(tensor.dtype)
    return TensorInfo(
        str(tensor.name),
        dtype.name if dtype else f"unknown-{tensor.dtype}",
        tuple(tensor.shape_ptr[: tensor.rank]),
        tensor.bytes,
        tensor.segment,
        tensor.offset,
    )

