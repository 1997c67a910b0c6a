"""For how long this thread was ready to run and had no processor, as Linux counts it.

Owns a descriptor of ``/proc/thread-self/schedstat``, which has nanoseconds on a processor, nanoseconds of waiting for
one, and turns.
"""

from __future__ import annotations

import os


class RunDelay:
    """Of the thread that made it."""

    def __init__(self) -> None:
        try:
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a kernel without CONFIG_SCHED_INFO
            self._file = -1

    def seconds(self) -> float:
        """0.0 where it is not counted."""
        return int(os.pread(self._file, 64, 0).split()[1]) / 1e9 if self._file >= 0 else 0.0

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
