"""From exceptions to errno: the one table."""

from __future__ import annotations

import errno

from aoefs import errors

_OF_TYPE: dict[type[errors.AoeFsError], int] = {
    errors.NotPermitted: errno.EPERM,
    errors.TargetBusy: errno.EBUSY,
    errors.ControlError: errno.EINVAL,  # after its two kinds
    errors.AddressConflict: errno.EROFS,
    errors.IdentityChanged: errno.ESTALE,
}
_OF_AOE_ERROR: dict[int, int] = {
    errors.ErrorCode.DEVICE_UNAVAILABLE: errno.ENXIO,
    errors.ErrorCode.TARGET_IS_RESERVED: errno.EBUSY,
}


def errno_of(error: errors.AoeFsError, *, ever_written: bool = True) -> int:
    """EROFS for a disk that aborts a write and never took one (not ``ever_written``), or takes none since another disk
    answers for its address; EIO for all that is not named.
    """
    if isinstance(error, errors.TargetError):
        return _OF_AOE_ERROR.get(error.code, errno.EIO)
    if isinstance(error, errors.AtaError) and error.write and error.is_abort and not ever_written:
        return errno.EROFS
    return next((number for kind, number in _OF_TYPE.items() if isinstance(error, kind)), errno.EIO)
