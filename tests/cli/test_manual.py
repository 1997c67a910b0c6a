"""The man pages: good roff, and the same words as ``--help``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from aoefs import __version__
from aoefs.cli import main as cli
from aoefs.cli import manual
from aoefs.status.columns import MEANINGS
from aoefs.status.console import KEYS
from tests.lab import require

PAGES = ("aoefs.1", "aoefs-target.1")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with all pages."""
    path = tmp_path_factory.mktemp("man")
    for name in PAGES:
        (path / name).write_text(manual.page(name, cli.all_parsers()))
    return path


def formatted(page: Path) -> str:
    """A page as a terminal of 80 columns shows it, in one line."""
    answer = subprocess.run(["mandoc", "-Tutf8", "-Owidth=80", page], capture_output=True, text=True, check=True)
    text = answer.stdout
    while (at := text.find("\b")) >= 0:  # bold and underlined letters are struck twice
        text = text[: at - 1] + text[at + 1 :]
    return " ".join(text.split())


@pytest.mark.parametrize("name", PAGES)
def test_a_man_page_is_good_roff(name: str, pages: Path) -> None:
    require("mandoc", root=False)
    answer = subprocess.run(["mandoc", "-Tlint", pages / name], capture_output=True, text=True, check=False)
    assert answer.stdout == ""
    assert "@" not in (pages / name).read_text().replace("aoefs@", "")


def test_the_man_pages_say_of_each_option_what_help_says(pages: Path) -> None:
    require("mandoc", root=False)
    texts = [formatted(pages / name) for name in PAGES]
    for command, parser in cli.all_parsers().items():
        text = texts[command == "target"]
        for action in manual.actions(parser):
            if action.help and "--help" not in action.option_strings:
                assert " ".join((action.help % vars(action)).split()) in text, (command, action.option_strings)
            assert all(option in text for option in action.option_strings if option not in ("-h", "--help"))
    assert all(f"aoefs {command}" in texts[0] for command in cli.COMMANDS)


def test_the_manual_has_the_sections_that_the_readme_leaves_to_it(pages: Path) -> None:
    text = (pages / PAGES[0]).read_text()
    sections = [line.removeprefix(".SH ") for line in text.splitlines() if line.startswith(".SH ")]
    assert {
        "FAULTS AND WHAT HAPPENS",
        "DURABILITY",
        "SECURITY",
        "TUNING",
        "PROTOCOL NOTES",
        "COMPARISON",
        "LIMITS",
        "THE CONSOLE",
        "EXAMPLES",
    } <= set(sections)


def test_the_manual_explains_what_the_console_shows_and_every_key(pages: Path) -> None:
    require("mandoc", root=False)
    text = formatted(pages / PAGES[0])
    for word, meaning in (*KEYS.items(), *MEANINGS.items()):
        assert word in text
        assert " ".join(meaning.split()) in text


def test_the_examples_of_the_manual_are_good_command_lines(pages: Path) -> None:
    section = (pages / PAGES[0]).read_text().partition(".SH EXAMPLES")[2].partition(".SH ")[0].replace("\\-", "-")
    lines = [line.removeprefix(".B ") for line in section.splitlines() if line.startswith(".B ")]
    ours = [
        line.partition("aoefs ")[2].split()
        for line in lines
        if "aoefs " in line and not line.startswith(("mount", "ip"))
    ]
    assert len(ours) >= 5
    for words in ours:
        command = words[0] if words[0] in cli.COMMANDS else None
        cli.build_parser(command).parse_intermixed_args(words[command is not None :])
    assert any("losetup" in line and "--direct-io=on" in line for line in lines)


def test_nothing_in_a_help_text_is_taken_for_roff() -> None:
    assert manual.escape(".TH x\n'br\na\\fB-é") == "\\&.TH x\n\\(aqbr\na\\efB\\-\\[u00E9]"


def test_a_page_says_of_which_version_it_is(pages: Path) -> None:
    for name in PAGES:
        assert f'"aoefs {__version__}"' in (pages / name).read_text()
