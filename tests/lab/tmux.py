"""A real terminal for tests: tmux, with a server of its own for each terminal.

:meth:`Tmux.lines` is what a person would see.  All files, the server's socket among them, are in the directory that the
test gives, so no other tmux is touched.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.lab.process import wait_until
from tests.lab.programs import require

_CONFIGURATION = "set -g remain-on-exit on\nset -g remain-on-exit-format ''\nset -g status off\nset -g escape-time 0\n"


class Tmux:
    """A program in a terminal of ``size`` (columns, lines).

    A shell writes the exit code to a file, since tmux does not always know it.
    """

    def __init__(self, directory: Path, command: Sequence[str], size: tuple[int, int]) -> None:
        configuration, self._code = directory / "tmux.conf", directory / "exit-code"
        self._tmux = ["tmux", "-S", str(directory / "tmux.socket"), "-u", "-f", str(configuration)]
        configuration.write_text(_CONFIGURATION)
        environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "HISTFILE": ""}
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
        """As ``wait_until`` of the lab, but a failure shows the screen."""
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
        """Whether the program uses the alternate screen, as editors do."""
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
        """From now on, write to a file, too, what the program sends to the terminal."""
        self._ask("pipe-pane", f"cat > {file}")

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True, timeout=30)


@contextlib.contextmanager
def terminal(directory: Path, command: Sequence[str], size: tuple[int, int] = (80, 24)) -> Iterator[Tmux]:
    """``command`` in a terminal, which is gone afterwards; its files are below ``directory``, and gone, too."""
    require("tmux")
    with tempfile.TemporaryDirectory(dir=directory, prefix="tmux-", ignore_cleanup_errors=True) as files:
        tmux = Tmux(Path(files), command, size)
        try:
            yield tmux
        finally:
            tmux.close()
