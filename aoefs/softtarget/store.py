"""Where the sectors of an export are: :class:`Store`, and that of a file or block device.

Owns the open descriptor, and every check of a path before the target starts.

What holds always: the size of a :class:`FileStore` is read once, when it is opened.  A file that shrinks later makes
reads fail (they are short); they never return zeros.  A block device is opened exclusively for writing, so that one
that is mounted cannot be exported.  An open store holds a lock (flock) on its file or device: several may read it, or
one may write it, whatever the path.  The lock ends with the process.

Rejected: O_DIRECT (small frames make small transfers, and alignment would be the initiator's problem), mmap (a
shrunken file would kill the process with SIGBUS), and a serial number made of address and host name, as vblade makes
it: it stays the same when another file is exported under that address, and an initiator would then mix two disks.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import select
import stat
import struct
from collections.abc import Sequence
from typing import Protocol

from aoefs.errors import UserError
from aoefs.protocol.ata import LBA48_SECTORS
from aoefs.protocol.wire import SECTOR_BYTES

_BLKROGET = 0x125E
_UDEV_PATIENCE = 20, 0.05  # tries and seconds between them: udev probes a device each time that a writer closes it


class Store(Protocol):
    """A disk of ``sectors`` sectors (512 bytes).  Calls may block, and raise OSError; offsets are in bytes.

    ``volatile`` says that a written sector is safe only after :meth:`sync`.  ``readv`` and ``writev`` return the bytes
    moved; fewer than asked for is a failure of the store.
    """

    sectors: int
    read_only: bool
    volatile: bool

    def readv(self, buffers: Sequence[memoryview | bytearray], offset: int) -> int: ...

    def writev(self, buffers: Sequence[memoryview | bytes], offset: int) -> int: ...

    def sync(self) -> None: ...


class FileStore:
    """An open file or block device.  Reads and writes mostly reach the page cache only; :meth:`sync` takes as long as
    the disk does, and is made for a thread.

    ``serial`` stays the same for the same disk; ``warning`` is a line for the user, or empty.  UserError when the path
    cannot be exported.
    """

    def __init__(self, path: str, *, read_only: bool = False, synchronous: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        self.volatile = not synchronous
        self.warning = ""
        self.descriptor = _open(path, read_only, synchronous)
        try:
            _lock(self.descriptor, path, read_only)
            size = self._examine()
        except BaseException:
            os.close(self.descriptor)
            raise
        self.sectors = min(size // SECTOR_BYTES, LBA48_SECTORS)
        if size % SECTOR_BYTES:
            self.warning = (
                f"{path}: the last {size % SECTOR_BYTES} bytes are not exported:"
                f" {size} is not a multiple of {SECTOR_BYTES}"
            )

    def _examine(self) -> int:
        status = os.fstat(self.descriptor)
        block_device = stat.S_ISBLK(status.st_mode)
        if not block_device and not stat.S_ISREG(status.st_mode):
            raise UserError(f"cannot export {self.path}: it is neither a file nor a block device")
        if block_device and not self.read_only:
            answer = fcntl.ioctl(self.descriptor, _BLKROGET, bytes(4))
            if struct.unpack("i", answer)[0]:
                raise UserError(f"cannot export {self.path}: the device is read-only; export it with --read-only")
        # Not st_size, which a block device does not have.
        size = os.lseek(self.descriptor, 0, os.SEEK_END)
        if size < SECTOR_BYTES:
            what = "it is empty" if size == 0 else f"its {size} bytes are less than one sector of {SECTOR_BYTES}"
            raise UserError(f"cannot export {self.path}: {what}; make it larger, such as with 'truncate -s 1G'")
        # The serial is made of what distinguishes this disk from any other that could be exported in its place later.
        # The device number of the file system is not part of it: for many file systems it changes with every boot.
        node = status.st_rdev if block_device else status.st_ino
        text = f"{os.uname().nodename}\0{os.path.realpath(self.path)}\0{node}"
        self.serial = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()
        return size

    def readv(self, buffers: Sequence[memoryview | bytearray], offset: int) -> int:
        return os.preadv(self.descriptor, buffers, offset)

    def writev(self, buffers: Sequence[memoryview | bytes], offset: int) -> int:
        return os.pwritev(self.descriptor, buffers, offset)

    def sync(self) -> None:
        """Everything written is on the disk when this returns; OSError when it is not."""
        os.fdatasync(self.descriptor)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1  # the number may soon be another file's
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> FileStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: str, read_only: bool, synchronous: bool) -> int:
    flags = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR) | (os.O_DSYNC if synchronous else 0)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"cannot export {path}: it is a directory; name a file or a block device")
        if stat.S_ISBLK(mode) and not read_only:
            flags |= os.O_EXCL  # EBUSY when it is mounted or part of something
        # A FIFO would make open() wait for its other end.
        return os.open(path, flags | os.O_NONBLOCK)
    except OSError as error:
        hints = {
            errno.ENOENT: "no such file; make one with 'truncate -s 1G'",
            errno.EACCES: "permission denied; run as its owner or root"
            + ("" if read_only else ", or use --read-only where reading is allowed"),
            errno.EROFS: "its file system is read-only; use --read-only",
            errno.EBUSY: "the device is in use (mounted?); unmount it, or use --read-only",
            errno.ETXTBSY: "it is in use as a program or swap space",
        }
        hint = hints.get(error.errno or 0, error.strerror)
        raise UserError(f"cannot export {path}: {hint}") from error


def _lock(descriptor: int, path: str, read_only: bool) -> None:
    """Take the lock of a reader or of the one writer; UserError when others have locked the file against that.

    A file system without locks has none: then the export is not protected.
    """
    kind = fcntl.LOCK_SH if read_only else fcntl.LOCK_EX
    tries, pause = _UDEV_PATIENCE if stat.S_ISBLK(os.fstat(descriptor).st_mode) else (1, 0.0)
    for left in reversed(range(tries)):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if left:
                select.select((), (), (), pause)
        except OSError:
            return
        else:
            return
    pid = _lock_holder(descriptor)
    if pid == os.getpid():
        raise UserError(f"cannot export {path}: it is given twice; give each file once, or use --read-only")
    who = f"process {pid}" if pid else "another process"
    raise UserError(
        f"cannot export {path}: {who} has locked it, perhaps another target; end that one, or let both use --read-only"
    )


def _lock_holder(descriptor: int) -> int:
    """The PID of a process that has locked the file; 0 if the kernel does not say."""
    status = os.fstat(descriptor)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks") as locks:
            for line in locks:  # 1: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF
                words = line.split()
                if words[1] == "FLOCK" and words[5] == file:
                    return int(words[4])
    except OSError:
        pass
    return 0
