"""Settings that make a mount fast, or safe when memory is short: of the kernel, Python's garbage collector and malloc.

A mount is correct without all of them.  A function that our rights may forbid tries one thing; when that fails it
returns a line for the log, otherwise None.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import math
import os
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger("aoefs")

READ_AHEAD_KB = 4096  # sequential buffered reads then arrive as eight requests of 1 MiB
MAX_BACKGROUND = 32  # the kernel's default is 12; a write of 1 MiB takes two here
MOST_BACKGROUND = 256  # with those that do not count, see engine.disk.Disk.exempt_calls
GARBAGE_THRESHOLD = 50_000  # objects allocated and not freed; a few MiB
KEPT_BYTES = 8 << 20  # of freed memory that malloc keeps
LARGEST_KEPT_BYTES = (1 << 20) + 2048  # the data of a write of 1 MiB as a bytes object, but not libfuse's buffer for it
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_PR_SET_IO_FLUSHER = 57
_CAPABILITY_VERSION_3 = 0x20080522
CAP_SYS_RESOURCE = 24
FUSECTL = Path("/sys/fs/fuse/connections")
SYSCTLS = Path("/proc/sys/fs/fuse")
OWN_SHARE = 0.75  # of the kernel's request timeout: so long may a request wait here; the rest is for the kernel's queue


def set_read_ahead(device: int) -> str | None:
    """Raise the read-ahead of the mount whose ``st_dev`` is ``device``."""
    bdi = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        bdi.write_text(f"{READ_AHEAD_KB}\n")
    except OSError as error:
        return f"read-ahead stays at the kernel's default: {error.strerror} (the daemon reads ahead itself)"
    return None


class Background:
    """How many requests of direct I/O and read-ahead the kernel sends a mount at once.  ``device`` is its ``st_dev``,
    ``requests`` the limit to begin with.

    All others wait in one queue, whichever file they are for.  ``complaint`` says why the limit cannot be changed.
    """

    def __init__(self, device: int, requests: int = MAX_BACKGROUND) -> None:
        self.complaint: str | None = None
        self._files: dict[str, int] = {}
        try:
            with contextlib.ExitStack() as cleanup:
                connections = FUSECTL if any(FUSECTL.iterdir()) else _mounted_fusectl(cleanup)
                for name in ("max_background", "congestion_threshold"):
                    self._files[name] = os.open(connections / str(os.minor(device)) / name, os.O_WRONLY)
            self._set(requests)
        except (OSError, subprocess.SubprocessError) as error:
            self.close()
            reason = error.strerror if isinstance(error, OSError) else "fusectl cannot be mounted"
            why = "deep queues are slower, and one of a slow target keeps all others waiting"
            self.complaint = f"max_background stays at the kernel's default: {reason} ({why})"

    def allow(self, requests: int) -> None:
        """Set the limit; it stays as it was when the kernel grants users less."""
        with contextlib.suppress(OSError):
            self._set(requests)

    def _set(self, requests: int) -> None:
        for name, value in (("max_background", requests), ("congestion_threshold", requests * 3 // 4)):
            os.write(self._files[name], b"%d\n" % value)

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()


def _mounted_fusectl(cleanup: contextlib.ExitStack) -> Path:
    """Mount fusectl for a moment, in a directory of our own: containers often lack it."""
    place = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="aoefs-fusectl-"))
    mount = ["mount", "-t", "fusectl", "none", place]
    subprocess.run(mount, check=True, capture_output=True)  # noqa: S603 (words of ours)
    cleanup.callback(subprocess.run, ["umount", "--lazy", place], check=False, capture_output=True)
    return Path(place)


def request_timeout() -> float | None:
    """Seconds after which a request aborts its whole mount, the time in the kernel's queue included (Linux 6.15).

    None if there is no limit.  An administrator sets it for the machine, as a default and as a maximum.
    """
    limits = []
    for name in ("default_request_timeout", "max_request_timeout"):
        with contextlib.suppress(OSError):  # an older kernel
            limits.append(float((SYSCTLS / name).read_text()))
    return min(filter(None, limits), default=None)


def bound_deadsecs(deadsecs: float) -> float:
    """``deadsecs`` (0: for ever), or less, so that a request has ended before the kernel would abort the mount."""
    limit = request_timeout()
    most = math.inf if limit is None else limit * OWN_SHARE
    if (deadsecs or math.inf) <= most:
        return deadsecs
    what = f"{deadsecs:g} s" if deadsecs else "without an end"
    log.warning("a request waits for %g s, not %s: after %g s the kernel would end the mount", most, what, limit)
    return most


def collect_garbage_rarely() -> None:
    """Exclude imported modules from garbage collection, and collect fifty times more rarely.

    Requests make no reference cycles.  With 16 requests under way the collector cost the engine a tenth of its time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)


def keep_freed_memory(size_bytes: int = KEPT_BYTES) -> None:
    """Let glibc's malloc give back what the start freed, then keep so much, and reuse the buffer of one write for the
    next.

    Fresh memory costs a page fault for each 4 KiB: 100 to 180 of them for a write of 1 MiB, a tenth of its time.
    The buffers in which libfuse receives requests are a page larger and live as long as a worker.  They keep their own
    maps: among the buffers of writes they would leave holes that fit neither.
    """
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is not None:
        libc.malloc_trim(0)
        mallopt(_M_TRIM_THRESHOLD, size_bytes)
        mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)


def become_io_flusher() -> str | None:
    """Let this thread allocate memory while the kernel writes dirty pages through it (PR_SET_IO_FLUSHER, Linux 5.6).

    Without it, a loop device on one of our files can deadlock when memory is short.  It is a right of a thread, which
    those that it starts inherit: call this in the thread that serves the requests.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0:
        why = f"it needs CAP_SYS_RESOURCE for PR_SET_IO_FLUSHER: {os.strerror(ctypes.get_errno())}"
        return f"when memory is short, a loop mount on a disk may hang ({why})"
    return None


def avoid_oom_killer() -> str | None:
    """Ask the OOM killer to spare this process: killing a mount frees little memory and breaks much."""
    try:
        Path("/proc/self/oom_score_adj").write_text("-1000\n")
    except OSError as error:
        why = f"it needs CAP_SYS_RESOURCE for oom_score_adj: {error.strerror}"
        return f"when memory is short, the kernel may kill this mount, and programs that use it fail ({why})"
    return None


def receive_by_read() -> str | None:
    """Keep libfuse from receiving requests through a pipe: :func:`give_up_capability` of CAP_SYS_RESOURCE.

    libfuse does so if it may make a pipe larger than ``fs.pipe-max-size``, by default 1 MiB, which that right allows.
    Each request then takes a splice and at least one read, and the data of a write go through the pipe.  Call this
    before the first request, and after what needs the right.  Where an administrator raised ``fs.pipe-max-size``,
    everybody has such a pipe, and libfuse cannot be told through pyfuse3 not to use it.
    """
    return give_up_capability(CAP_SYS_RESOURCE)


def give_up_capability(number: int) -> str | None:
    """Take a right from this thread and from those that it starts, of the ones that count now (effective)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable of the first 32 rights, then of the others
    if libc.capget(header, sets) == 0:
        sets[number // 32 * 3] &= ~(1 << number % 32)
        if libc.capset(header, sets) == 0:
            return None
    return f"capability {number} is kept: {os.strerror(ctypes.get_errno())} (requests may take a slower way)"
