"""Exceptions: one class per situation that programs tell apart, all with the stable code."""

from __future__ import annotations


class MrmError(Exception):
    """Something that the daemon or the client library refused.

    ``code`` and ``name`` are stable (``mrm_error_e`` of ``mrm.h``); ``retryable`` says whether the
    same call may succeed later with nothing changed, ``took_effect`` whether it changed anything
    in the daemon. The text names the object, the reason and the remedy.
    """

    code: int
    name: str
    retryable: bool
    took_effect: bool

    def __init__(
        self,
        message: str,
        code: int = 0,
        name: str = "none",
        retryable: bool = False,
        took_effect: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.name = name
        self.retryable = retryable
        self.took_effect = took_effect

    def __str__(self) -> str:
        # Not the one of KeyError, which shows the text in quotes.
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        message = str(self.args[0])
        return type(self), (message, self.code, self.name, self.retryable, self.took_effect)


class NotFound(MrmError, KeyError):
    """No such model, tensor, metadata or segment."""


class NoDaemon(MrmError):
    """No daemon answers on the socket, or the connection to it is lost."""


class TimedOut(MrmError):
    """The wait ended first. A load that was started goes on; a later open may hit."""


class NoRoom(MrmError):
    """The model does not fit: not at all, not now, or not while others wait."""


class NoDevice(MrmError):
    """The weights are not to be had on a device: none is usable, visible, or the daemon's."""


class NotPermitted(MrmError):
    """This user may not do that."""


class BadSource(MrmError):
    """The bytes of the model could not be had: missing, unreadable, changing, or refused."""


class BadFormat(MrmError, ValueError):
    """The bytes are not what the format asks for."""


_CLASSES: dict[int, type[MrmError]] = {
    201: NotFound,
    205: NotPermitted,
    207: NoDevice,
    505: TimedOut,
    700: NoDaemon,
    701: NoDaemon,
    702: TimedOut,
    703: NoDaemon,
    705: TimedOut,
    708: BadSource,
    709: BadSource,
    711: NotFound,
    715: NoDevice,
    716: NoDevice,
    717: NoDevice,
    718: NoDevice,
    719: NoDevice,
    903: NotFound,
}

_FAMILIES: dict[int, type[MrmError]] = {3: BadSource, 4: BadFormat, 5: NoRoom}


def class_of(code: int) -> type[MrmError]:
    """The exception for a number of ``mrm_error_e``."""
    return _CLASSES.get(code) or _FAMILIES.get(code // 100, MrmError)
