"""``aoefs install``: the files that a host needs beside the Python package; ``--remove`` takes them away.

Owns the list of files and the record of what was written (``PREFIX/share/aoefs/installed.json``: a digest of each file,
and the directories that were made for them).  The content comes from ``cli/data`` and, through ``cli.manual`` and
shtab, from the parsers that also make ``--help``.

What always holds: a file that this command did not write, or that was changed since, is neither replaced nor removed.
The record is on the disk before the first file, so that an interrupted installation can be removed.  After an error
nothing of this run is left.

Rejected: package data under ``share/`` of the wheel (pip puts it into a virtual environment, where neither systemd nor
man nor mount(8) looks), and a fixed list of names to remove (it would take what others put there).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aoefs.cli import manual, options
from aoefs.errors import UserError
from aoefs.status.text import to_stderr

RECORD = "share/aoefs/installed.json"
HELPERS = ("mount.aoefs", "mount.fuse.aoefs")  # in /sbin whatever the prefix: mount(8) looks nowhere else
UMOUNT_HELPERS = ("umount.aoefs", "umount.fuse.aoefs")  # the same of umount(8)

Parsers = Mapping[str | None, argparse.ArgumentParser]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--prefix", default="/usr/local", metavar="DIR", help="where to install (default /usr/local)")
    add("--destdir", default="/", metavar="DIR", help="the root of the file system (default /), for packages")
    add("--command", metavar="FILE", help="the aoefs that unit and mount helper start (default: this one)")
    add("--remove", action="store_true", help="take everything back that was installed there, and nothing else")
    add("--dry-run", action="store_true", help="only say what would be done")


def run(arguments: argparse.Namespace) -> int:
    """Install or remove; the exit code."""
    if not os.path.isabs(arguments.prefix):
        raise UserError(f"--prefix {arguments.prefix} is not an absolute path", exit_code=2)
    installation = Installation(Path(arguments.destdir), Path(arguments.prefix), arguments.dry_run)
    if arguments.remove:
        return installation.remove()
    command = arguments.command or _this_command()
    if not os.path.isabs(command):
        raise UserError(f"--command {command} is not an absolute path", exit_code=2)
    installation.install(plan(Path(arguments.prefix), command, arguments.all_parsers()))
    return 0


def _this_command() -> str:
    """The console script beside the running interpreter, which need not be in the PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), "aoefs")
    command = beside if os.access(beside, os.X_OK) else shutil.which("aoefs")
    if command is None:
        raise UserError("this aoefs is not installed as a command: 'pip install .' first, or name one with --command")
    return os.path.abspath(command)


# ── what is installed ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Item:
    """A file with this text, or a link to this target."""

    text: str
    link: bool = False

    @property
    def digest(self) -> str:
        return f"-> {self.text}" if self.link else hashlib.sha256(self.text.encode()).hexdigest()


def plan(prefix: Path, command: str, parsers: Parsers) -> dict[Path, Item]:
    """All items by their path below the root."""
    share = prefix / "share"
    files = {
        prefix / "lib/systemd/system/aoefs@.service": Item(_unit(command)),
        share / "man/man1/aoefs.1": Item(manual.page("aoefs.1", parsers)),
        share / "man/man1/aoefs-target.1": Item(manual.page("aoefs-target.1", parsers)),
        share / "bash-completion/completions/aoefs": Item(_completion("bash", parsers)),
        share / "zsh/site-functions/_aoefs": Item(_completion("zsh", parsers)),
        share / "fish/vendor_completions.d/aoefs.fish": Item(_completion("fish", parsers)),
    }
    files |= {Path("/sbin", name): Item(command, link=True) for name in HELPERS + UMOUNT_HELPERS}
    if Path(command) != prefix / "bin/aoefs":
        files[prefix / "bin/aoefs"] = Item(command, link=True)
    return files


def _unit(command: str) -> str:
    quoted = command.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return manual.data("aoefs@.service").replace("@AOEFS@", f'"{quoted}"' if quoted.split() != [quoted] else quoted)


def _completion(shell: str, parsers: Parsers) -> str:
    """The completion that shtab makes of one parser with subcommands.

    Without MOUNTPOINT, which would hide the commands from zsh.
    """
    try:
        import shtab
    except ImportError:
        what = options.pip("install shtab")
        raise UserError(f"'aoefs install' needs the Python package shtab: {what}") from None
    root = argparse.ArgumentParser(prog="aoefs")
    options.add_options(root)
    commands = root.add_subparsers(metavar="COMMAND")
    made = [root]
    for name, parser in parsers.items():
        if name is not None:
            made.append(commands.add_parser(name, help=parser.description, parents=[parser], add_help=False))
    kinds = {
        "DIR": shtab.DIRECTORY,
        "FILE": shtab.FILE,
        "IF": {
            "bash": "_shtab_aoefs_interfaces",
            "zsh": "_net_interfaces",
            "fish": "(command ls /sys/class/net | string match -v lo)",
        },
        "MOUNTPOINT": {
            "bash": "_shtab_aoefs_mounts",
            "zsh": "_files -/",
            "fish": r"(string match -rg '^\S+ (\S+) fuse\.aoefs ' </proc/self/mounts)",
        },
        "X.Y=PATH": {"bash": "_shtab_aoefs_exports", "zsh": "_files", "fish": "(__fish_complete_path)"},
    }
    for parser in made:
        for action in manual.actions(parser):
            if action.metavar in kinds:
                action.complete = kinds[action.metavar]  # type: ignore[attr-defined]  # for shtab
    text: str = shtab.complete(root, shell, preamble=_BASH if shell == "bash" else "")
    return text


# What bash completes by itself.  It takes "0.1=disk" for one word or, by default, for three.
_BASH = """
_shtab_aoefs_interfaces() { compgen -X lo -W "$(command ls /sys/class/net)" -- "$1"; }
_shtab_aoefs_mounts() {
  local path type
  while read -r _ path type _; do
    printf -v path %b "$path"
    if [[ $type == fuse.aoefs && $path == "$1"* ]]; then echo "$path"; fi
  done </proc/self/mounts
}
_shtab_aoefs_exports() {
  local name=
  case $1 in ?*=*) name=${1%%=*}= ;; esac
  compgen -P "$name" -f -- "${1#*=}"
}
"""


# ── installing and removing ───────────────────────────────────────────────────────────────────────────────────────


class Installation:
    """An installation below a root and a prefix, as the record of an earlier run knows it."""

    def __init__(self, root: Path, prefix: Path, dry_run: bool) -> None:
        self.root, self.prefix, self.dry_run = root, prefix, dry_run
        self.digests: dict[str, str] = {}
        self.directories: list[str] = []
        self.record = self.at(self.prefix / RECORD)
        try:
            known = json.loads(self.record.read_text())
            self.digests, self.directories = known["files"], known["directories"]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.record} cannot be read: {getattr(error, 'strerror', None) or error}") from None

    def at(self, path: Path | str) -> Path:
        """The real path of a path below the root."""
        return self.root / str(path).lstrip("/")

    def is_ours(self, path: str) -> bool:
        """Whether the file is still as it was written."""
        return _digest(self.at(path)) == self.digests.get(path)

    def install(self, items: Mapping[Path, Item]) -> None:
        """Write all items or none; UserError names a file that is in the way."""
        for path, item in items.items():
            if _digest(self.at(path)) not in (None, item.digest, self.digests.get(str(path))):
                raise UserError(f"{self.at(path)} is not of this command's making, or was changed: move it away first")
        stale = [old for old in self.digests if Path(old) not in items and self.is_ours(old)]
        undo = contextlib.ExitStack()
        try:
            with undo:
                if not self.dry_run:
                    self._write_record(undo, {str(path): item.digest for path, item in items.items()})
                for path, item in items.items():
                    self._put(undo, self.at(path), item)
                undo.pop_all()
        except OSError as error:
            raise UserError(f"{error.filename2 or error.filename} cannot be written: {error.strerror}") from None
        for old in stale:
            self._take(old)

    def remove(self) -> int:
        """Remove the files that are still as they were written; 1 if another one stays, else 0."""
        if not self.digests:
            raise UserError(f"nothing is installed below {self.at(self.prefix)}: there is no {self.record}")
        stays = 0
        for path in self.digests:
            if self.is_ours(path):
                self._take(path)
            elif os.path.lexists(self.at(path)):
                stays += 1
                to_stderr(f"{self.at(path)} was changed since: it stays")
        if not self.dry_run:
            self.record.unlink()
            for directory in sorted(self.directories, key=len, reverse=True):
                with contextlib.suppress(OSError):  # not empty: others use it now
                    self.at(directory).rmdir()
        return 1 if stays else 0

    def _take(self, path: str) -> None:
        print(f"remove {self.at(path)}")
        if not self.dry_run:
            try:
                self.at(path).unlink()
            except OSError as error:
                raise UserError(f"{self.at(path)} cannot be removed: {error.strerror}") from None

    def _put(self, undo: contextlib.ExitStack, path: Path, item: Item) -> None:
        print(f"link {path} -> {item.text}" if item.link else f"write {path}")
        if self.dry_run or _digest(path) == item.digest:
            return
        self._make_directories(undo, path.parent)
        is_new = not os.path.lexists(path)
        _replace(path, lambda draft: draft.symlink_to(item.text) if item.link else _write(draft, item.text))
        if is_new:
            undo.callback(path.unlink, missing_ok=True)

    def _write_record(self, undo: contextlib.ExitStack, digests: Mapping[str, str]) -> None:
        before = self.record.read_text() if self.record.exists() else None
        parents = {parent for path in (*map(Path, digests), self.prefix / RECORD) for parent in path.parents}
        ours = {str(parent) for parent in parents if not self.at(parent).exists()}.union(self.directories)
        text = json.dumps({"files": {**digests}, "directories": sorted(ours)}, indent=1)
        self._make_directories(undo, self.record.parent)
        _replace(self.record, lambda draft: _write(draft, text))
        undo.callback(self.record.unlink if before is None else lambda: _write(self.record, before))

    def _make_directories(self, undo: contextlib.ExitStack, path: Path) -> None:
        if not path.is_dir():
            self._make_directories(undo, path.parent)
            path.mkdir(0o755)
            undo.callback(path.rmdir)


def _digest(path: Path) -> str | None:
    """The digest of what is at a path, as :attr:`Item.digest`; None if nothing is there."""
    try:
        if path.is_symlink():
            return f"-> {os.readlink(path)}"
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    """Put a file or a link in place in one step, so that half of it is never seen."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        make(draft)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
