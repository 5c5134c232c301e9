"""``safe_open`` and what it gives."""

from __future__ import annotations

import os
from typing import Any

from .. import open as open_model
from .. import open_path
from .._errors import BadFormat
from .._model import Model, TensorInfo
from ._frameworks import Framework, Numpy, Torch, import_torch, torch_place

try:
    # A program that catches the error of the safetensors package goes on doing so.
    from safetensors import SafetensorError as _Base
except ImportError:
    _Base = Exception

REGISTERED = "mrm:"
_NUMPY = ("np", "numpy")
_TORCH = ("pt", "torch", "pytorch")


class SafetensorError(_Base):  # type: ignore[misc, valid-type]
    """The file is not a safetensors file, or has no such tensor."""


class SafeSlice:
    """A tensor that is made only where it is sliced."""

    def __init__(self, info: TensorInfo, framework: Framework) -> None:
        self._info = info
        self._framework = framework

    def get_shape(self) -> list[int]:
        """Its dimensions."""
        return list(self._info.shape)

    def get_dtype(self) -> str:
        """Its element type, as safetensors headers name it."""
        return self._info.dtype

    def __getitem__(self, index: Any) -> Any:
        try:
            return self._framework.tensor(self._info)[index]
        except IndexError as error:
            raise SafetensorError(
                f"Error during slicing {index} with shape {self.get_shape()}: {error}"
            ) from error


class safe_open:  # noqa: N801 - the name of the safetensors package
    """Opens a safetensors file, or with ``mrm:NAME`` a registered model, for lazy reading.

    ``backend`` is checked as the safetensors package does it, and has no effect: the bytes are in
    memory already.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        framework: str,
        device: str | int = "cpu",
        *,
        backend: str = "mmap",
    ) -> None:
        if framework not in _NUMPY + _TORCH:
            raise SafetensorError(
                f"framework {framework} is invalid: mrm has 'np' and 'pt'; make other "
                "frameworks' tensors from numpy arrays"
            )
        if backend not in ("mmap", "pread"):
            raise SafetensorError(
                f'backend "{backend}" is invalid (expected one of: "mmap", "pread")'
            )
        if framework in _NUMPY and device != "cpu":
            raise SafetensorError(f"Device {device} is not supported for framework numpy")
        place = None
        if framework in _TORCH and device != "cpu":
            place = torch_place(import_torch(), device)
        self._model: Model | None = _open(os.fspath(filename), place)
        self._framework: Framework = (
            Numpy(self._model) if framework in _NUMPY else Torch(self._model, device)
        )
        self._infos: dict[str, TensorInfo] | None = None

    def __enter__(self) -> safe_open:
        return self

    def __exit__(self, *_: object) -> None:
        if self._model is not None:
            self._model.close()
        self._model = None
        self._infos = None

    def keys(self) -> list[str]:
        """The names of the tensors, sorted."""
        return sorted(self._all())

    def offset_keys(self) -> list[str]:
        """The names of the tensors, in the order of their places in the file."""
        infos = sorted(self._all().values(), key=lambda info: (info.segment, info.offset))
        return [info.name for info in infos]

    def metadata(self) -> dict[str, str] | None:
        """The text that came with the tensors; None if there is none."""
        return self._open_model().metadata or None

    def get_tensor(self, name: str) -> Any:
        """The tensor ``name``."""
        return self._framework.tensor(self._info(name))

    def get_tensors(self) -> dict[str, Any]:
        """Every tensor, by name, in the order of :meth:`offset_keys`."""
        return {name: self.get_tensor(name) for name in self.offset_keys()}

    def get_slice(self, name: str) -> SafeSlice:
        """The tensor ``name``, to be sliced."""
        return SafeSlice(self._info(name), self._framework)

    def _open_model(self) -> Model:
        if self._model is None:
            raise SafetensorError("File is closed")
        return self._model

    def _all(self) -> dict[str, TensorInfo]:
        model = self._open_model()
        if self._infos is None:
            self._infos = {info.name: info for info in model.infos()}
        return self._infos

    def _info(self, name: str) -> TensorInfo:
        try:
            return self._all()[name]
        except KeyError:
            raise SafetensorError(f"File does not contain tensor {name}") from None


def _open(filename: str, device: str | None = None) -> Model:
    """Opens it on ``device`` if that can be had, else in host memory."""
    try:
        if filename.startswith(REGISTERED):
            model = open_model(filename.removeprefix(REGISTERED), device=device, else_host=True)
        else:
            os.stat(filename)  # for its FileNotFoundError
            model = open_path(filename, device=device, else_host=True)
    except BadFormat as error:
        raise SafetensorError(f"Error while deserializing header: {error}") from error
    if model.kind != "safetensors":
        model.close()
        raise SafetensorError(f"{filename} is not a safetensors file; mrm.open gives its bytes")
    return model
