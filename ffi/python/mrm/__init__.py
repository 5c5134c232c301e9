"""Models that the node's ``mrmd`` keeps in memory, as numpy arrays without a copy.

    >>> import mrm
    >>> with mrm.open("sentence/minilm") as model:          # doctest: +SKIP
    ...     weights = model["pooler.dense.weight"]           # read-only, not a copy

A model is a mapping of tensor names to arrays, and a context manager. ``mrm.safetensors`` has the
functions of the ``safetensors`` package over the same memory. With ``device="cuda:0"`` the weights
are in the memory of a device, for torch, cupy and others to take without a copy. With
``wait="layout"`` a model is open before its last byte is read, and each tensor is waited for when it
is asked for.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Sequence

from ._client import Client, ModelRow, Progress, WaitFor, release_deferred, shared
from ._copy import Copy
from ._errors import (
    BadFormat,
    BadSource,
    MrmError,
    NoDaemon,
    NoDevice,
    NoRoom,
    NotFound,
    NotPermitted,
    TimedOut,
)
from ._ffi import lib as _lib
from ._model import Model, TensorInfo
from ._tensor import Tensor

__all__ = [
    "BadFormat",
    "BadSource",
    "Client",
    "Copy",
    "Model",
    "ModelRow",
    "MrmError",
    "NoDaemon",
    "NoDevice",
    "NoRoom",
    "NotFound",
    "NotPermitted",
    "Tensor",
    "TensorInfo",
    "TimedOut",
    "hint",
    "list",
    "open",
    "open_many",
    "open_path",
    "release_deferred",
    "stat",
]

#: The release of the library underneath.
__version__: str = _lib.version().decode()  # type: ignore[attr-defined]


def open(
    name: str,
    *,
    device: str | int | None = None,
    else_host: bool = False,
    wait: float | WaitFor | None = None,
    wait_for: WaitFor = "all",
    progress: Progress | None = None,
    populate: bool = False,
    reserve: int = 0,
    client: Client | None = None,
) -> Model:
    """Opens the registered model ``name``; see :meth:`Client.open`."""
    return (client or shared.get()).open(
        name,
        device=device,
        else_host=else_host,
        wait=wait,
        wait_for=wait_for,
        progress=progress,
        populate=populate,
        reserve=reserve,
    )


def open_many(
    names: Sequence[str],
    *,
    device: str | int | None = None,
    else_host: bool = False,
    wait: float | WaitFor | None = None,
    wait_for: WaitFor = "all",
    progress: Progress | None = None,
    populate: bool = False,
    reserve: int = 0,
    client: Client | None = None,
) -> builtins.list[Model]:
    """Opens several registered models at once; see :meth:`Client.open_many`."""
    return (client or shared.get()).open_many(
        names,
        device=device,
        else_host=else_host,
        wait=wait,
        wait_for=wait_for,
        progress=progress,
        populate=populate,
        reserve=reserve,
    )


def open_path(
    path: str | os.PathLike[str],
    *,
    device: str | int | None = None,
    else_host: bool = False,
    wait: float | WaitFor | None = None,
    wait_for: WaitFor = "all",
    progress: Progress | None = None,
    populate: bool = False,
    reserve: int = 0,
    client: Client | None = None,
) -> Model:
    """Opens local files that nobody registered; see :meth:`Client.open_path`."""
    return (client or shared.get()).open_path(
        path,
        device=device,
        else_host=else_host,
        wait=wait,
        wait_for=wait_for,
        progress=progress,
        populate=populate,
        reserve=reserve,
    )


def list(prefix: str = "", *, client: Client | None = None) -> builtins.list[ModelRow]:
    """Every model whose name begins with ``prefix``; see :meth:`Client.list`."""
    return (client or shared.get()).list(prefix)


def stat(name: str, *, client: Client | None = None) -> ModelRow:
    """What the daemon knows of the model ``name``; see :meth:`Client.stat`."""
    return (client or shared.get()).stat(name)


def hint(name: str, within: float = 0.0, *, client: Client | None = None) -> None:
    """Says that a model will be opened within so many seconds; see :meth:`Client.hint`."""
    (client or shared.get()).hint(name, within)
