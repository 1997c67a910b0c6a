"""A real terminal for tests: tmux, with a server of its own for each terminal.

What a person would see is :meth:`Tmux.lines`; keys, sizes and the end of the program are tmux's.  The server is asked
to end by its own socket, so that nobody else's tmux is touched.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.lab import require, wait_until

_serial = itertools.count(1)
_CONFIGURATION = "set -g remain-on-exit on\nset -g remain-on-exit-format ''\nset -g status off\nset -g escape-time 0\n"


class Tmux:
    """A program in a terminal of ``size`` (columns, lines).

    A shell tells its exit code in a file: tmux does not always know it.
    """

    def __init__(self, name: str, directory: Path, command: Sequence[str], size: tuple[int, int]) -> None:
        configuration, self._code = directory / f"{name}.conf", directory / f"{name}.code"
        self._tmux = ["tmux", "-L", name, "-u", "-f", str(configuration)]
        configuration.write_text(_CONFIGURATION)
        environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        for variable in ("COLUMNS", "LINES", "TMUX", "NO_COLOR"):
            environment.pop(variable, None)
        columns, lines = map(str, size)
        shell = ["sh", "-c", f'trap : INT; "$@"; echo $? > {self._code}', "sh", *command]
        start = [*self._tmux, "new-session", "-d", "-x", columns, "-y", lines, shlex.join(shell)]
        subprocess.run(start, env=environment, check=True, timeout=30)

    def _ask(self, *arguments: str) -> str:
        return subprocess.run(
            [*self._tmux, *arguments], check=True, capture_output=True, text=True, timeout=30
        ).stdout.rstrip("\n")

    def lines(self) -> list[str]:
        """What is on the screen, without colours and blanks at the ends of lines."""
        return [line.rstrip() for line in self._ask("capture-pane", "-p").split("\n")]

    def shows(self, text: str) -> bool:
        return any(text in line for line in self.lines())

    def wait_for(self, text: str) -> list[str]:
        """The screen, once the text is somewhere on it."""
        self.wait_until(lambda: self.shows(text), text)
        return self.lines()

    def wait_until(self, predicate: Callable[[], object], what: str) -> None:
        """As ``wait_until`` of the lab; a failure shows the screen."""
        try:
            wait_until(predicate, timeout=30, what=what)
        except AssertionError as error:
            raise AssertionError("\n".join((str(error), *self.lines()))) from None

    def press(self, *keys: str) -> None:
        """Keys by their names in tmux: ``q``, ``C-c``, ``Down``."""
        self._ask("send-keys", *keys)

    def type(self, line: str) -> None:
        """A line for a shell."""
        self._ask("send-keys", "-l", line)
        self.press("Enter")

    def resize(self, columns: int, lines: int) -> None:
        self._ask("resize-window", "-x", str(columns), "-y", str(lines))

    def is_full_screen(self) -> bool:
        """Whether the program has taken the screen for itself, as editors do."""
        return self._ask("display", "-p", "#{alternate_on}") == "1"

    @property
    def pid(self) -> int:
        shell = self._ask("display", "-p", "#{pane_pid}")
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text())

    def exit_code(self) -> int:
        """Wait for the end of the program."""
        self.wait_until(lambda: self._code.exists() and self._code.read_text(), "the program ends")
        return int(self._code.read_text())

    def record(self, file: Path) -> None:
        """Write all that the program sends to the terminal from now on to a file too."""
        self._ask("pipe-pane", f"cat > {file}")

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True, timeout=30)


@contextlib.contextmanager
def terminal(directory: Path, command: Sequence[str], size: tuple[int, int] = (80, 24)) -> Iterator[Tmux]:
    """``command`` (a lab's, or any) in a terminal, which is gone afterwards; ``directory`` is for its files."""
    require("tmux")
    name = f"aoefs-{os.getpid()}-{next(_serial)}"
    tmux = Tmux(name, directory, command, size)
    try:
        yield tmux
    finally:
        tmux.close()
