"""Clients: the session with the daemon."""

from __future__ import annotations

import builtins
import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from . import _ffi
from ._ffi import lib
from ._model import Model
from ._owned import Owned

Progress = Callable[[int, int], None]
WaitFor = Literal["all", "layout"]

_STATES = {0: "absent", 1: "loading", 2: "resident", 3: "partial"}
_WAIT_FOR: dict[str, int] = {"all": 0, "layout": 1}
_TIER_HOST, _TIER_DEVICE, _TIER_BEST = range(3)
_WITHIN_MAX = 366 * 86400
_OPTIONS_BYTES = ctypes.sizeof(_ffi.OpenOptions)

# The environment as the library sees it. `os.environ` raises an exception inside for each name that
# is not set, which takes a tenth of a process's first open.
_getenv = ctypes.PyDLL(None).getenv
_getenv.restype, _getenv.argtypes = ctypes.c_char_p, [ctypes.c_char_p]


class ModelRow(NamedTuple):
    """A model as the daemon knows it."""

    name: str
    #: ``absent``, ``loading``, ``resident`` or ``partial``.
    state: str
    #: 0 when not known yet.
    nbytes: int
    #: Over all sessions.
    leases: int
    #: Whether the operator registered it.
    registered: bool
    #: Whether the operator pinned it.
    pinned: bool
    #: The version that the next open would get; known only to :meth:`Client.stat`.
    version: int | None


class Client:
    """A session with the daemon behind the socket ``path``; without one, with the node's daemon.

    That is found as ``$MRM_SOCKET``, ``$MRM_RUNTIME_DIR/mrmd.sock``,
    ``$XDG_RUNTIME_DIR/mrm/mrmd.sock``, then ``/run/mrm/mrmd.sock``. A context manager; safe to use
    from several threads, and in a forked child, which gets a session of its own.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        handle = ctypes.c_void_p()
        encoded = None if path is None else os.fsencode(path)
        lib.check(lib.client_connect(encoded, ctypes.byref(handle)))
        self._keep(handle.value or 0)

    def _keep(self, handle: int) -> None:
        self._handle: int | None = handle
        self._session = Owned(handle, lib.client_close)

    def open(
        self,
        name: str,
        *,
        device: str | int | None = None,
        else_host: bool = False,
        wait: float | WaitFor | None = None,
        wait_for: WaitFor = "all",
        progress: Progress | None = None,
        populate: bool = False,
        reserve: int = 0,
    ) -> Model:
        """Opens the registered model ``name``.

        ``device`` is in whose memory: ``cuda:0`` or 0 (as this process counts), ``GPU-...`` (its
        UUID), ``cuda`` (any that this process sees); None or ``cpu`` is the host's. With
        ``else_host`` the host's will do when that cannot be had now, which ``Model.why_host`` then
        explains; ``best`` is short for ``cuda`` with ``else_host``.

        Waits up to ``wait`` seconds for room and for the load (0: takes only what is there at
        once; None: the default of the library). ``progress(loaded_bytes, total_bytes)`` is called
        while it waits. With ``populate`` every page in host memory is mapped before this returns, so
        that no first touch waits for the kernel. ``reserve`` is how many bytes of the device are to
        stay free of weights while the model is open, for what this process does there.

        With ``wait_for="layout"`` it returns as soon as memory for the model is there, before its
        last byte is: tensors come one by one, in the order in which they were first used the last
        time; ``model[name]`` waits for the one it is asked for, up to ``wait`` seconds, and
        :meth:`Model.ready` says whether it would. On a device all is waited for. ``wait="layout"``
        is short for this with the default wait.
        """
        how = _How(_place(device, else_host), (wait, wait_for), progress, (populate, reserve))
        return self._open(lib.client_open, name.encode(), how)

    def open_many(
        self,
        names: Sequence[str],
        *,
        device: str | int | None = None,
        else_host: bool = False,
        wait: float | WaitFor | None = None,
        wait_for: WaitFor = "all",
        progress: Progress | None = None,
        populate: bool = False,
        reserve: int = 0,
    ) -> builtins.list[Model]:
        """Opens several registered models, with one message there and as few back as can be.

        All of them or none: when one cannot be opened, its error is raised. Otherwise as
        :meth:`open`.
        """
        how = _How(_place(device, else_host), (wait, wait_for), progress, (populate, reserve))
        count = len(names)
        texts = (ctypes.c_char_p * count)(*(_text(name) for name in names))
        handles = (ctypes.c_void_p * count)()
        number = lib.client_open_many(
            self._open_handle(), texts, count, ctypes.byref(how.options), handles
        )
        try:
            how.raise_again()
        except BaseException:
            for handle in handles:
                if handle:
                    lib.model_close(handle)
            raise
        lib.check(number)
        return [Model(handle or 0, early=how.early) for handle in handles]

    def open_path(
        self,
        path: str | os.PathLike[str],
        *,
        device: str | int | None = None,
        else_host: bool = False,
        wait: float | WaitFor | None = None,
        wait_for: WaitFor = "all",
        progress: Progress | None = None,
        populate: bool = False,
        reserve: int = 0,
    ) -> Model:
        """Opens local files that nobody registered: a file, a model's directory, or an index.

        This process opens them, so that its own permissions count, and passes the descriptors.
        """
        how = _How(_place(device, else_host), (wait, wait_for), progress, (populate, reserve))
        return self._open(lib.client_open_path, os.fsencode(path), how)

    def list(self, prefix: str = "") -> builtins.list[ModelRow]:
        """Every model whose name begins with ``prefix``, in the order of names."""
        rows: builtins.list[ModelRow] = []

        def collect(stat: ctypes._Pointer[_ffi.Stat], _: int) -> bool:
            rows.append(_row(str(stat.contents.name), stat.contents))
            return True

        lib.check(lib.client_list(self._open_handle(), _text(prefix), _ffi.LIST(collect), None))
        return rows

    def stat(self, name: str) -> ModelRow:
        """What the daemon knows of the model ``name``, without opening it."""
        stat = _ffi.Stat(size=ctypes.sizeof(_ffi.Stat))
        lib.check(lib.client_stat(self._open_handle(), _text(name), ctypes.byref(stat)))
        return _row(name, stat)

    def hint(self, name: str, within: float = 0.0) -> None:
        """Says that the registered model ``name`` will be opened ``within`` so many seconds, by this
        process or another: the daemon may load it before that, while nobody waits for anything else.
        At most an hour ahead; what is said later takes the place of what was said before."""
        if not 0 <= within < _WITHIN_MAX:
            raise ValueError("within is a number of seconds from 0 to a year")
        lib.check(lib.client_hint(self._open_handle(), _text(name), round(within * 1000)))

    def close(self) -> None:
        """Gives the session back. Models that it opened stay open."""
        self._handle = None
        self._session.close()

    def __enter__(self) -> Client:
        self._open_handle()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_handle(self) -> int:
        if self._handle is None:
            raise ValueError("this client is closed; make another one")
        return self._handle

    def _open(self, function: Callable[..., int], what: bytes, how: _How) -> Model:
        session = self._open_handle()

        def call(handle: object) -> int:
            return function(session, what, ctypes.byref(how.options), handle)

        return _opened(call, what, how)


class _Late(Client):
    """A client that connects with its first open, by one message for both."""

    def __init__(self) -> None:
        self._handle = None
        #: Of the threads that come first, one gets to be here.
        self._first: dict[str, int] = {}

    def _open_handle(self) -> int:
        if self._handle is None:
            handle = ctypes.c_void_p()
            lib.check(lib.client_connect(None, ctypes.byref(handle)))
            self._settle(handle.value or 0)
        return self._first["session"]

    def _open(self, function: Callable[..., int], what: bytes, how: _How) -> Model:
        if self._handle is not None or function is not lib.client_open:
            return super()._open(function, what, how)
        session = ctypes.c_void_p()

        def call(handle: object) -> int:
            options = ctypes.byref(how.options)
            return lib.client_connect_open(None, what, options, ctypes.byref(session), handle)

        try:
            return _opened(call, what, how)
        finally:
            if session.value:
                self._settle(session.value)

    def _settle(self, session: int) -> None:
        if self._first.setdefault("session", session) == session:
            self._keep(session)
        else:
            lib.client_close(session)


def _opened(call: Callable[[object], int], what: bytes, how: _How) -> Model:
    """The model of which ``call`` writes the handle."""
    if b"\0" in what:
        raise ValueError("a name or path cannot hold NUL")
    handle = ctypes.c_void_p()
    number = call(ctypes.byref(handle))
    try:
        how.raise_again()
    except BaseException:
        if handle.value:
            lib.model_close(handle)
        raise
    lib.check(number)
    return Model(handle.value or 0, early=how.early)


class _How:
    """The options of an open, as C has them."""

    def __init__(
        self,
        place: tuple[int, bytes | None],
        waits: tuple[float | WaitFor | None, WaitFor],
        progress: Progress | None,
        pages: tuple[bool, int],
    ) -> None:
        tier, device = place
        populate, reserve = pages
        if not 0 <= reserve < 1 << 64:
            raise ValueError("reserve is a number of bytes")
        wait, wait_for = waits
        if isinstance(wait, str):
            wait, wait_for = None, wait
        if wait_for not in _WAIT_FOR:
            raise ValueError(f"`{wait_for}` is not what an open waits for: `all` or `layout`")
        #: Whether what it opens may still be being filled.
        self.early = wait_for == "layout"
        self.options = options = _ffi.OpenOptions(
            size=_OPTIONS_BYTES,
            wait_ms=_ffi.wait_ms(wait),
            tier=tier,
            device=device,
            populate=populate,
            wait_for=_WAIT_FOR[wait_for],
            reserve_bytes=reserve,
        )
        self._raised: builtins.list[BaseException] = []
        if progress is not None:
            # What it raises cannot pass through C: it is raised again when the open is over.
            def report(loaded_bytes: int, total_bytes: int, _: int) -> None:
                try:
                    if not self._raised:
                        progress(loaded_bytes, total_bytes)
                except BaseException as error:
                    self._raised.append(error)

            options.progress = _ffi.PROGRESS(report)

    def raise_again(self) -> None:
        """Raises what the progress callback raised, if it did."""
        if self._raised:
            raise self._raised[0]


def _place(device: str | int | None, else_host: bool) -> tuple[int, bytes | None]:
    """The tier, a number of ``mrm_tier_e``, and the device."""
    if device is None or device == "cpu":
        return _TIER_HOST, None
    if device == "best":
        return _TIER_BEST, None
    text = f"cuda:{device}" if isinstance(device, int) else device
    return _TIER_BEST if else_host else _TIER_DEVICE, _text(text)


def release_deferred() -> int:
    """Unmaps what was closed on devices while a stream was captured; how many models are left."""
    left = ctypes.c_size_t()
    lib.check(lib.release_deferred(ctypes.byref(left)))
    return left.value


def _text(text: str) -> bytes:
    if "\0" in text:
        raise ValueError("a name cannot hold NUL")
    return text.encode()


def _row(name: str, stat: _ffi.Stat) -> ModelRow:
    return ModelRow(
        name,
        _STATES.get(stat.state, "unknown"),
        stat.bytes,
        stat.leases,
        stat.registered,
        stat.pinned,
        stat.version if stat.has_version else None,
    )


class _Shared:
    """The clients that functions without a ``client`` argument use: one a socket."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: dict[tuple[bytes | None, ...], Client] = {}
        # A child may be forked while another thread holds the lock.
        os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        self._lock = threading.Lock()

    def get(self) -> Client:
        key = _getenv(b"MRM_SOCKET"), _getenv(b"MRM_RUNTIME_DIR"), _getenv(b"XDG_RUNTIME_DIR")
        client = self._clients.get(key)
        if client is None:
            with self._lock:
                client = self._clients.get(key)
                if client is None:
                    client = self._clients[key] = _Late()
        return client


shared = _Shared()
# Made at import, and not in the middle of a process's first open.
shared.get()
