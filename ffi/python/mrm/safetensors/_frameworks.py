"""What differs between numpy and torch."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

from .._copy import private_image
from .._model import Model, TensorInfo


class Framework(Protocol):
    """Makes tensors of one framework from a model."""

    def tensor(self, info: TensorInfo) -> Any:
        """The tensor that ``info`` describes."""


class Numpy:
    """Read-only arrays over the shared memory."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def tensor(self, info: TensorInfo) -> Any:
        return self._model[info.name]


#: What torch calls the types; those that a torch is too old for are missing from it.
_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
}


def import_torch() -> Any:
    """Torch, or what to do about its absence."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "framework 'pt' needs torch; install torch, or use framework 'np'"
        ) from error
    return torch


def torch_place(torch: Any, device: str | int) -> str | None:
    """Which device an open is to ask for; None for the host, and for what is not CUDA's."""
    wanted = torch.device(device)
    if wanted.type != "cuda":
        return None
    # Torch and the driver count alike, and `cuda` alone is torch's current device.
    index = torch.cuda.current_device() if wanted.index is None else wanted.index
    return f"cuda:{index}"


class Torch:
    """Tensors over a private copy-on-write mapping of the same memory; on a CUDA device, over the
    daemon's own memory there."""

    def __init__(self, model: Model, device: str | int) -> None:
        self._torch = torch = import_torch()
        self._device = torch.device(device)
        self._model = model
        why = model.why_host
        if why is not None:
            warnings.warn(
                f"the tensors are copied to {self._device} one by one, into memory of this "
                f"process's own: {why}",
                RuntimeWarning,
                stacklevel=3,
            )
        self._images: dict[int, memoryview] = {}

    def tensor(self, info: TensorInfo) -> Any:
        torch = self._torch
        dtype = getattr(torch, _TORCH_NAMES.get(info.dtype, ""), None)
        if dtype is None:
            raise TypeError(f"torch {torch.__version__} has no type for {info.dtype}")
        if info.nbytes == 0:
            # torch.frombuffer takes no empty range.
            return torch.empty(info.shape, dtype=dtype, device=self._device)
        if self._model.device != "cpu":
            return self._on_device(info, dtype)
        image = self._image(info.segment)
        count = info.nbytes // dtype.itemsize
        flat = torch.frombuffer(image, dtype=dtype, count=count, offset=info.offset)
        return flat.reshape(info.shape).to(self._device)

    def _on_device(self, info: TensorInfo, dtype: Any) -> Any:
        # By the older capsule, which every torch takes; and elements of 8 bits by their bits,
        # since not every torch knows their types there.
        small = dtype.itemsize == 1
        lent = self._model.lend(info.name)._capsule(versioned=False, as_bytes=small)
        tensor = self._torch.from_dlpack(lent)
        return tensor.view(dtype) if small else tensor

    def _image(self, segment: int) -> memoryview:
        image = self._images.get(segment)
        if image is None:
            image = self._images[segment] = private_image(self._model.hold(), segment)
        return image
