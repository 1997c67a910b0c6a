"""The exception tree: whose fault it is shows in the type.

``FrameError`` (bytes from the wire are not what they claim), ``TargetError`` (the target answered with an AoE
error), ``AtaError`` (the disk answered with an ATA error), ``TargetLost`` (nobody answered in time) and
``IdentityChanged`` (somebody else answers now) are *theirs*.  A ``ValueError`` is *ours*: a caller inside this
package broke a contract.  ``UserError`` is a person's: one line for stderr with an exit code; ``ControlError`` one's
who wrote to a control file.

``fuse.operations`` holds the one table from these types to an errno.
"""

from __future__ import annotations


class AoeFsError(Exception):
    """Base of everything that this package raises on purpose."""


class FrameError(AoeFsError):
    """Bytes from the network that cannot be decoded.  The only exception a ``*_untrusted`` decoder raises."""


class RequestError(AoeFsError):
    """A request to a target failed; the subclasses say how, and some at which sector (``lba``)."""

    lba: int | None = None

    @property
    def at(self) -> str:
        """Where, as a piece of a sentence; nothing when that is not known."""
        return "" if self.lba is None else f" at LBA {self.lba}"


class TargetError(RequestError):
    """The target refused with an AoE error (AoEr11 section 2.4).

    ``code`` is the error byte: 1 unrecognized command, 2 bad argument, 3 device unavailable, 4 config string
    present, 5 unsupported version, 6 target is reserved; other values are passed on as they came.
    """

    def __init__(self, code: int, lba: int | None = None) -> None:
        super().__init__(code, lba)
        self.code = code
        self.lba = lba

    def __str__(self) -> str:
        names = {
            1: "unrecognized command",
            2: "bad argument",
            3: "device unavailable",
            4: "config string present",
            5: "unsupported version",
            6: "target is reserved",
        }
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
        """The disk does not know the command, or may not carry it out."""
        return bool(self.error & 0x04)

    def __str__(self) -> str:
        bits = ((0x80, "ICRC"), (0x40, "UNC"), (0x10, "IDNF"), (0x04, "ABRT"))
        names = "|".join(name for bit, name in bits if self.error & bit) or "no error bit"
        return f"ATA error {names} (status 0x{self.status:02x}, error 0x{self.error:02x})"


class TargetLost(RequestError):
    """No answer within the time a request may wait, or the target is known to be down."""


class IdentityChanged(RequestError):
    """Another disk answers under this address now; what was open belongs to the disk that is gone."""


class ControlError(AoeFsError):
    """What was written to a control file makes no sense here, and has changed nothing; ``str()`` says why."""


class TargetBusy(ControlError):
    """It makes sense, but the target is in use."""


class UserError(AoeFsError):
    """Something a person can mend: ``str()`` is one line that says what, where and what to do.

    ``exit_code`` is 2 for wrong usage, 1 for a failure.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
