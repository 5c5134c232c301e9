"""Open models: mappings of names to arrays that lie in the daemon's memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from weakref import ref

from . import _ffi
from ._copy import Copy
from ._dtypes import DTYPES, as_array, as_bytes, numpy_dtype
from ._ffi import lib, wait_ms
from ._layouts import Layouts
from ._owned import Owned
from ._tensor import Tensor

_KINDS = {0: "opaque", 1: "safetensors"}
_NO_SUCH_ITEM = 903
#: After so many tensors, one by one, what all are is read at once.
_SINGLES_MAX = 4
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


class Hold(Owned):
    """A model handle, closed when nothing refers to it any more.

    Every buffer refers to it, so that the memory outlives ``Model.close`` for as long as an array
    needs it.
    """

    __slots__ = ()

    def __init__(self, handle: int) -> None:
        super().__init__(handle, lib.model_close)


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

    A model that was opened with ``wait="layout"`` is still being filled: what asks for a tensor's
    bytes waits for that one, :meth:`raw` and :meth:`copy_on_write` for all, and nothing else waits.
    """

    def __init__(self, handle: int, *, early: bool = False) -> None:
        self._hold: Hold | None = Hold(handle)
        # Whether it may still be being filled.
        self._early = early
        self._details: _ffi.ModelInfo | None = None
        self._images: dict[int, memoryview] = {}
        # As `_images`, as arrays; and what lies where in them, once that was read.
        self._bases: dict[int, Any] = {}
        self._layouts: Layouts | None = None
        self._singles = 0
        # What was given out, as long as it lives.
        self._arrays: dict[str, ref[Any]] = {}

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
        given = self._arrays.get(name)
        array = None if given is None else given()
        if array is None:
            array = self.tensor(name)
            self._arrays[name] = ref(array)
        elif self._hold is None:
            raise self._closed()
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._all().places)

    def __len__(self) -> int:
        return int(self._info().tensors)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        try:
            self.layout_of(name)
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
        early = self._is_early()
        if not (raw or early):
            array = self._array(name)
            if array is not None:
                return array
        found = self._find(name)
        if found.device >= 0:
            if raw:
                raise TypeError(f"`{name}` is on {self.device}: its bits are not in host memory")
            return Tensor(self.hold(), found)
        if early:
            # The file as a whole may not be lent yet.
            return as_array(self._buffer(found.data_ptr, found.bytes), 0, found, raw)
        return as_array(self.raw(found.segment), found.offset, found, raw)

    def lend(self, name: str) -> Tensor:
        """The tensor ``name`` for other libraries, by DLPack, in whichever memory it lies.

        Of a model that is still being filled it may not be there yet: see :meth:`Tensor.ready`.
        """
        if self._is_early():
            return Tensor(self.hold(), self.layout_of(name), early=True)
        return Tensor(self.hold(), self._find(name))

    def ready(self, name: str | None = None) -> bool:
        """Whether the tensor ``name`` is there, or without a name all of the model.

        Always so, but for a model that was opened with ``wait="layout"`` and is still being filled.
        Does not wait. Raises when the load failed.
        """
        handle, ready = self._handle(), ctypes.c_bool()
        if name is None:
            lib.check(lib.model_whole(handle, ctypes.byref(ready)))
        else:
            index = self.layout_of(name).index
            lib.check(lib.tensor_ready(handle, index, ctypes.byref(ready)))
        return ready.value

    def wait(self, wait: float | None = None) -> None:
        """Waits until all of the model is there, up to ``wait`` seconds (None: as the open would)."""
        hold = self.hold()  # Another thread's `close` must not end it meanwhile.
        lib.check(lib.model_wait(hold.handle, wait_ms(wait)))

    def copy_on_write(self) -> Copy:
        """Its tensors as arrays that can be written to, which nobody else sees. In host memory."""
        self._need_host()
        self._need_whole()
        return Copy(self)

    def info(self, name: str) -> TensorInfo:
        """What the tensor ``name`` is, without an array of it."""
        return _describe(self.layout_of(name))

    def infos(self) -> list[TensorInfo]:
        """What all tensors are, in the order of the files."""
        self.hold()  # Of a closed model it would else depend on what was asked before.
        names = {code: dtype.name for code, dtype in DTYPES.items()}
        all_ = self._all()
        dtypes = [names.get(code) or f"unknown-{code}" for code in all_.codes]
        columns = (all_.places, dtypes, all_.shapes, all_.sizes, all_.segments, all_.offsets)
        return [TensorInfo(*row) for row in zip(*columns, strict=True)]

    # Files.

    def raw(self, index: int = 0) -> memoryview:
        """The exact image of one file, read-only. Stays valid after :meth:`close`."""
        if self._hold is None:
            raise self._closed()
        self._need_host()
        image = self._images.get(index)
        if image is None:
            self._need_whole()
            segment = self._segment(index)
            image = self._images[index] = self._buffer(segment.data_ptr, segment.bytes)
        return image

    def file_descriptor(self, index: int = 0) -> int:
        """A descriptor of the memory behind one file, open for reading; the caller closes it."""
        self._need_host()
        self._need_whole()
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
        self._bases = {}

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

    def _is_early(self) -> bool:
        if self._early and self.ready():
            self._early = False
        return self._early

    def _need_whole(self) -> None:
        if self._is_early():
            self.wait()

    def _buffer(self, address: int, size: int) -> memoryview:
        # The buffer carries the hold: whoever has a view of it keeps the memory.
        buffer = (ctypes.c_ubyte * size).from_address(address)
        buffer.hold = self._hold
        return memoryview(buffer).toreadonly().cast("B")

    def _find(self, name: str) -> _ffi.Tensor:
        # Held for the call: another thread's `close` must not end it during a wait.
        hold, encoded, tensor = self.hold(), name.encode(errors="surrogatepass"), _ffi.Tensor()
        if self._early:
            index = self.layout_of(name).index
            lib.check(lib.tensor_wait(hold.handle, index, _ffi.WAIT_DEFAULT))
        lib.check(
            lib.model_tensor_find(hold.handle, encoded, len(encoded), ctypes.byref(tensor))
        )
        return tensor

    def layout_of(self, name: str) -> _ffi.Tensor:
        """What C says of the tensor, without its elements and without waiting for it."""
        encoded, layout = name.encode(errors="surrogatepass"), _ffi.Tensor()
        lib.check(
            lib.model_layout_find(self._handle(), encoded, len(encoded), ctypes.byref(layout))
        )
        return layout

    def _all(self) -> Layouts:
        if self._layouts is None:
            hold = self.hold()  # Another thread's `close` must not end it meanwhile.
            self._layouts = Layouts(hold.handle, self._info().tensors)
        return self._layouts

    def _array(self, name: str) -> Any:
        # An array in host memory, if all layouts were read or it is time to read them.
        all_ = self._layouts
        if all_ is None:
            self._singles += 1
            if self._singles <= _SINGLES_MAX:
                return None
            all_ = self._all()
        place = all_.places.get(name)
        if place is None or all_.devices[place] >= 0:
            return None
        segment = all_.segments[place]
        base = self._bases.get(segment)
        if base is None:
            base = self._bases[segment] = as_bytes(self.raw(segment))
        # Of what `base` is made of, a view or a bare array, it would look through to the buffer
        # underneath: see `as_array`. Of an array it takes over whether it can be written to.
        shape, dtype = all_.shapes[place], numpy_dtype(all_.codes[place])
        return type(base)(shape, dtype, base, all_.offsets[place])

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

