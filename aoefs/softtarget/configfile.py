"""The file that keeps the config string of an export: ``IMAGE.aoe`` beside the image, or one in a state directory.

It holds the string and a newline, as ``.aoefs/eX.Y/config`` of a mount does.

What always holds:

- After any crash the file is the old one or the new one, and complete: a draft is written, synced and renamed.
- A file that is not of this form stays as it is, and then nothing is kept: it may be somebody's data.
- No link is followed and nothing that blocks is opened, since the directory may be another user's.

Rejected: a file beside the node of a block device, since /dev is in memory.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile

from aoefs.protocol.wire import MAX_CONFIG_BYTES
from aoefs.softtarget.store import FileStore


class ConfigFile:
    """Reads the file at ``path``: ``string`` is the config string in it (empty if there is no file), or None while
    :meth:`save` runs.  ``warning`` is a line for the user, or empty.  Only a ``writable`` one can be saved.
    """

    def __init__(self, path: str, *, writable: bool = True) -> None:
        self.path = path
        self.string: bytes | None = b""
        self.warning = ""
        try:
            content = _read(path)
        except FileNotFoundError:
            content = b"\n"
        except OSError as error:
            self.warning = f"{path} cannot be read ({error.strerror}): config strings are not kept"
            content = b""
        if content.endswith(b"\n"):
            self.string = content[:-1]
        elif not self.warning:
            self.warning = f"{path} is no config string: it is ignored, and none is kept until you remove it"
        self.writable = writable and not self.warning

    def save(self, string: bytes) -> None:
        """Keep another string.  It blocks; OSError if it failed: then ``string`` is the new one all the same."""
        if string == self.string:
            return
        self.string = None
        try:
            _replace(self.path, string + b"\n")
        finally:
            self.string = string


def config_file(store: FileStore, state_directory: str | None) -> ConfigFile | None:
    """The file for a store; None if there is no place for it.

    Without a state directory a read-only export is not writable here either: nothing beside its image changes.
    """
    if state_directory is not None:
        return ConfigFile(os.path.join(state_directory, f"{store.serial}.aoe"))
    if stat.S_ISBLK(os.fstat(store.descriptor).st_mode):
        return None
    return ConfigFile(f"{os.path.realpath(store.path)}.aoe", writable=not store.read_only)


def _read(path: str) -> bytes:
    """All of a small file; empty if the path is anything else."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return b""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        content = os.read(descriptor, MAX_CONFIG_BYTES + 2)
    finally:
        os.close(descriptor)
    return content if len(content) < MAX_CONFIG_BYTES + 2 else b""


def _replace(path: str, content: bytes) -> None:
    directory = os.path.dirname(path)
    descriptor, draft = tempfile.mkstemp(prefix=".aoe-", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.rename(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
