"""The man pages: the texts of ``cli/data/*.in`` with the options of the parsers, which ``--help`` shows too.

A page is written in the macros of man(7).  ``@OPTIONS@`` stands for the options of the mount, ``@OPTIONS target@`` for
those of a command, ``@COMMANDS@`` for all commands with their options, ``@VERSION@`` for the version, ``@KEYS@`` and
``@COLUMNS@`` for those of the console.

Rejected: argparse-manpage (made for one parser with subcommands; ``aoefs MOUNTPOINT`` has none), and pages in the wheel
(pip puts them where man does not look).
"""

from __future__ import annotations

import argparse
import importlib.resources
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping

from aoefs import __version__

_OWN_PAGE = {"target"}  # commands that have a page of their own


def data(name: str) -> str:
    """The text of a file of ``cli/data``."""
    return importlib.resources.files("aoefs.cli").joinpath("data", name).read_text()


def actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a parser, in the order of its help; argparse has no public name for them."""
    return [action for action in parser._actions if action.help is not argparse.SUPPRESS]


def page(name: str, parsers: Mapping[str | None, argparse.ArgumentParser]) -> str:
    """The page of ``cli/data/NAME.in``."""

    def fill(line: re.Match[str]) -> str:
        kind, command = line[1], line[2]
        if kind == "VERSION":
            return f'"aoefs {__version__}"'
        if kind in ("KEYS", "COLUMNS"):
            from aoefs.status import columns, console

            return "\n".join(_meanings(console.KEYS if kind == "KEYS" else columns.MEANINGS))
        return "\n".join(_options(parsers[command or None]) if kind == "OPTIONS" else _commands(parsers))

    filled = re.sub(r"@([A-Z]+)(?: (\w+))?@", fill, data(f"{name}.in"))
    return "\n".join(_wrapped(filled.splitlines())) + "\n"


def _wrapped(lines: Iterable[str]) -> Iterator[str]:
    """The lines of text, of at most 80 bytes, as man pages have them."""
    as_they_are = False
    for line in lines:
        if line.startswith((".nf", ".TS", ".fi", ".TE")):
            as_they_are = line.startswith((".nf", ".TS"))
        if as_they_are or line.startswith((".", "'")):
            yield line
        else:
            for piece in textwrap.wrap(line, 80, break_long_words=False, break_on_hyphens=False):
                yield re.sub(r"^(?=[.'])", r"\\&", piece)


def _meanings(texts: Mapping[str, str]) -> Iterator[str]:
    for word, text in texts.items():
        yield f".TP\n\\fB{escape(word)}\\fR\n{escape(text)}"


def _commands(parsers: Mapping[str | None, argparse.ArgumentParser]) -> Iterator[str]:
    for name, parser in parsers.items():
        if name is None:
            continue
        yield f".SS aoefs {escape(name)}{_positionals(parser)}"
        yield escape(parser.description or "")
        if name in _OWN_PAGE:
            yield f"See\n.BR aoefs\\-{name} (1)."
        else:
            yield from _options(parser)


def _positionals(parser: argparse.ArgumentParser) -> str:
    text = ""
    for action in actions(parser):
        if not action.option_strings:
            name = escape(_metavar(action))
            optional = action.nargs in (argparse.OPTIONAL, argparse.ZERO_OR_MORE)
            text += f" [{name}]" if optional else f" {name}"
            text += " ..." if action.nargs in (argparse.ONE_OR_MORE, argparse.ZERO_OR_MORE) else ""
    return text


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    return "|".join(map(str, action.choices)) if action.choices else action.dest.upper()


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in actions(parser):
        if not action.help or action.dest == "help":
            continue
        yield ".TP"
        if action.option_strings:
            value = "" if action.nargs == 0 else rf" \fI{escape(_metavar(action))}\fR"
            yield ", ".join(rf"\fB{escape(option)}\fR{value}" for option in action.option_strings)
        else:
            yield rf"\fI{escape(_metavar(action))}\fR"
        # argparse fills in %(default)s and the like in the same way.
        yield escape(action.help % {**vars(action), "prog": parser.prog})


def escape(text: str) -> str:
    """The text as roff source that shows it unchanged: no escapes, no requests, minus signs that can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    text = "".join(letter if letter.isascii() else f"\\[u{ord(letter):04X}]" for letter in text)
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)
