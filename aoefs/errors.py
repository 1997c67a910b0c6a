"""The exceptions; the type says whose fault it is.

The network's: ``FrameError`` (bytes that cannot be decoded), ``TargetError`` (an AoE error as the answer), ``AtaError``
(an ATA error as the answer), ``TargetLost`` (no answer in time), ``IdentityChanged`` (another disk answers now),
``AddressConflict`` (two disks answer).
A person's: ``UserError`` (a command line), ``ControlError`` (what was written to a control file).
Ours: a ``ValueError``, since a caller inside this package broke a contract.

The two enumerations are the protocol's (``protocol.wire``, ``protocol.ata``); they are here since their names are what
the errors say.  ``fuse`` has the one table from these types to an errno.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class ErrorCode(IntEnum):
    """The error byte of an AoE frame, meaningful with ``Flag.ERROR`` only (AoEr11 section 2.4)."""

    UNRECOGNIZED_COMMAND = 1
    BAD_ARGUMENT = 2
    DEVICE_UNAVAILABLE = 3
    CONFIG_STRING_PRESENT = 4
    UNSUPPORTED_VERSION = 5
    TARGET_IS_RESERVED = 6


class ErrorBit(IntFlag):
    """Bits of the ATA error register that block devices use."""

    ICRC = 0x80
    UNC = 0x40
    IDNF = 0x10
    ABRT = 0x04


class AoeFsError(Exception):
    """Base of everything that this package raises on purpose."""


class FrameError(AoeFsError):
    """Bytes from the network that cannot be decoded.  The only exception that a ``*_untrusted`` decoder raises."""


class RequestError(AoeFsError):
    """A request to a target failed.  ``lba`` is the sector, if it is known."""

    lba: int | None = None

    @property
    def at(self) -> str:
        """Where it failed, to be appended to a sentence; empty when that is not known."""
        return "" if self.lba is None else f" at LBA {self.lba}"


class TargetError(RequestError):
    """The target answered with an AoE error; ``code`` is the error byte (AoEr11 section 2.4)."""

    def __init__(self, code: int, lba: int | None = None) -> None:
        super().__init__(code, lba)
        self.code = code
        self.lba = lba

    def __str__(self) -> str:
        names = {code.value: code.name.lower().replace("_", " ") for code in ErrorCode}
        return f"AoE error {self.code} ({names.get(self.code, 'unknown')})"


class AtaError(RequestError):
    """The disk ended a command with an error: ``status & 0xA9`` is not 0 (ATA8-ACS 6.2).

    ``status`` and ``error`` are the two registers, ``lba`` the first sector of the failed command.
    """

    def __init__(self, status: int, error: int, lba: int | None = None, *, write: bool = False) -> None:
        super().__init__(status, error, lba)
        self.status = status
        self.error = error
        self.lba = lba
        self.write = write

    @property
    def is_abort(self) -> bool:
        """The disk does not know the command, or refused to carry it out."""
        return bool(self.error & ErrorBit.ABRT)

    def __str__(self) -> str:
        names = "|".join(str(bit.name) for bit in ErrorBit if self.error & bit) or "no error bit"
        return f"ATA error {names} (status 0x{self.status:02x}, error 0x{self.error:02x})"


class AddressConflict(RequestError):
    """Another disk answers for the address of this one: nothing is written there."""


class TargetLost(RequestError):
    """No answer within the time a request may wait, or the target is known to be down."""


class IdentityChanged(RequestError):
    """Another disk answers under this address now.  Open files belong to the disk that is gone."""


class ControlError(AoeFsError):
    """What was written to a control file cannot be carried out, and changed nothing; ``str()`` says why."""


class TargetBusy(ControlError):
    """It cannot be carried out while the target is in use."""


class NotPermitted(ControlError):
    """It is for root alone."""


class UserError(AoeFsError):
    """Something that a person can fix: ``str()`` is one line that says what is wrong, where, and what to do.

    ``exit_code`` is 2 for wrong usage, 1 for a failure.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
