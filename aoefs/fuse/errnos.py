"""From exceptions to errno: the one table, and the guard around every handler of FUSE requests."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import trio
from pyfuse3 import FUSEError

from aoefs.errors import AoeFsError, AtaError, ControlError, IdentityChanged, TargetBusy, TargetError
from aoefs.protocol.wire import ErrorCode

log = logging.getLogger("aoefs")

P = ParamSpec("P")
T = TypeVar("T")

_OF_AOE_ERROR: dict[int, int] = {
    ErrorCode.DEVICE_UNAVAILABLE: errno.ENXIO,
    ErrorCode.TARGET_RESERVED: errno.EBUSY,
}


def errno_of(error: AoeFsError, *, ever_written: bool = True) -> int:
    """EROFS for a disk that aborts a write and never took one (not ``ever_written``); EIO for all that is not named."""
    if isinstance(error, ControlError):
        return errno.EBUSY if isinstance(error, TargetBusy) else errno.EINVAL
    if isinstance(error, TargetError):
        return _OF_AOE_ERROR.get(error.code, errno.EIO)
    if isinstance(error, AtaError) and error.write and error.is_abort and not ever_written:
        return errno.EROFS
    return errno.ESTALE if isinstance(error, IdentityChanged) else errno.EIO


def guarded(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let only FUSEError out, since anything else would end the mount: the rest is logged and answered EIO."""

    @functools.wraps(handler)
    async def guarded(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return await handler(*arguments, **named)
        except (FUSEError, trio.Cancelled):
            raise
        except Exception:
            log.exception("%s failed unexpectedly", handler.__name__)
            raise FUSEError(errno.EIO) from None

    return guarded
