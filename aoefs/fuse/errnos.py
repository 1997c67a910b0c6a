"""From exceptions to errno: the one table."""

from __future__ import annotations

import errno

from aoefs.errors import (
    AddressConflict,
    AoeFsError,
    AtaError,
    ControlError,
    IdentityChanged,
    NotPermitted,
    TargetBusy,
    TargetError,
)
from aoefs.protocol.wire import ErrorCode

_OF_AOE_ERROR: dict[int, int] = {
    ErrorCode.DEVICE_UNAVAILABLE: errno.ENXIO,
    ErrorCode.TARGET_IS_RESERVED: errno.EBUSY,
}


def errno_of(error: AoeFsError, *, ever_written: bool = True) -> int:
    """EROFS for a disk that aborts a write and never took one (not ``ever_written``), or takes none since another disk
    answers for its address; EIO for all that is not named.
    """
    if isinstance(error, NotPermitted):
        return errno.EPERM
    if isinstance(error, ControlError):
        return errno.EBUSY if isinstance(error, TargetBusy) else errno.EINVAL
    if isinstance(error, TargetError):
        return _OF_AOE_ERROR.get(error.code, errno.EIO)
    if isinstance(error, AddressConflict):
        return errno.EROFS
    if isinstance(error, AtaError) and error.write and error.is_abort and not ever_written:
        return errno.EROFS
    return errno.ESTALE if isinstance(error, IdentityChanged) else errno.EIO
