"""The terminal of a live screen: keys, signals and calls of other threads, as one stream of words.

Owns the mode of the terminal, the handlers of the signals that concern a screen, and the pipe by which signals and
threads wake :meth:`Terminal.wait`.  A signal only leaves its number in the pipe; :meth:`Terminal.wait` interprets it.

What always holds: the terminal has its old mode after the block, however it ends, and while the program is suspended.
Ctrl-C stays a signal, so that it works while the program is busy.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import termios
import tty

QUIT, RESIZED, SUSPEND, WOKEN = "quit", "resized", "suspend", "woken"

_MEANINGS = {
    signal.SIGINT: QUIT,
    signal.SIGTERM: QUIT,
    signal.SIGHUP: QUIT,
    signal.SIGWINCH: RESIZED,
    signal.SIGCONT: RESIZED,  # other programs may have drawn meanwhile
    signal.SIGTSTP: SUSPEND,
}
_SEQUENCES = {
    "A": "up",
    "B": "down",
    "H": "home",
    "F": "end",
    "1~": "home",
    "4~": "end",
    "5~": "page up",
    "6~": "page down",
    "7~": "home",
    "8~": "end",
}
_KEY = re.compile(r"\x1b[\[O]([0-9;]*[A-Za-z~])|(.)", re.DOTALL)


def keys(text: str) -> list[str]:
    """What was typed, as characters and names such as ``page up``; other escape sequences are left out."""
    found = ((_SEQUENCES.get(match[1], "") if match[1] else match[2]) for match in _KEY.finditer(text))
    return [key for key in found if key and key != "\x1b"]


class Terminal:
    """The terminal of this process (stdin) inside a ``with`` block; in the main thread only."""

    def __enter__(self) -> Terminal:
        with contextlib.ExitStack() as undo:
            self._input = sys.stdin.fileno()
            self._mode = termios.tcgetattr(self._input)
            self._woken, self._wake = os.pipe()
            for descriptor in (self._woken, self._wake):
                undo.callback(os.close, descriptor)
                os.set_blocking(descriptor, False)
            undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False))
            for number in _MEANINGS:  # the pipe gets their numbers, and there is nothing else to do
                undo.callback(signal.signal, number, signal.signal(number, lambda *_: None))
            undo.callback(self._restore)
            self._take_keys()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _take_keys(self) -> None:
        """Get each key at once and without echo; Ctrl-S too, which would else stop the output and so the program."""
        tty.setcbreak(self._input)
        mode = termios.tcgetattr(self._input)
        mode[0] &= ~termios.IXON
        termios.tcsetattr(self._input, termios.TCSANOW, mode)

    def _restore(self) -> None:
        with contextlib.suppress(termios.error):  # it has hung up
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._mode)

    def wake(self) -> None:
        """Let :meth:`wait` return.  From any thread; also when nothing waits any more."""
        with contextlib.suppress(OSError):
            os.write(self._wake, b"\0")

    def wait(self, seconds: float) -> list[str]:
        """Wait at most so long; the keys that were pressed, and QUIT, RESIZED, SUSPEND or WOKEN."""
        ready, _, _ = select.select([self._input, self._woken], [], [], max(0.0, seconds))
        found: list[str] = []
        if self._woken in ready:
            found += (_MEANINGS.get(signal.Signals(byte), "") if byte else WOKEN for byte in os.read(self._woken, 4096))
        if self._input in ready:
            try:
                typed = os.read(self._input, 4096)
            except OSError:  # it has hung up
                typed = b""
            found += keys(typed.decode(errors="replace")) if typed else [QUIT]
        return found

    def suspend(self) -> None:
        """Stop this process as Ctrl-Z does, with the terminal in its old mode until the process continues."""
        self._restore()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        self._take_keys()
