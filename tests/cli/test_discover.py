"""The command line as a person meets it: help, one-line errors, exit codes, and the commands beside the mount."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from aoefs import __version__, is_compiled
from aoefs.cli import main as cli
from aoefs.errors import UserError
from aoefs.host import mountpoint
from aoefs.status.tables import format_size, print_table, printable, target_row
from tests.lab import INITIATOR, Lab, require, wait_until

HEAVY = {"numpy", "trio", "pyfuse3", "rich", "asyncio", "subprocess", "logging", "ctypes"}


def aoefs(*arguments: str | Path, **options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aoefs", *map(str, arguments)]
    environment = {**os.environ, **options}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)


@contextlib.contextmanager
def standin(path: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A live mount of the stand-in file system."""
    require("/dev/fuse")
    path.mkdir(exist_ok=True)
    environment = {**os.environ, "STANDIN": " ".join(words)}
    with subprocess.Popen([sys.executable, "-m", "tests.host.standin", path], env=environment) as process:
        try:
            wait_until(lambda: mountpoint.find_mount(str(path)), what="the stand-in is mounted")
            yield process
        finally:
            process.kill()
            process.wait()
            mountpoint.clear_dead(str(path))


def is_mounted(path: Path) -> bool:
    return mountpoint.find_mount(str(path)) is not None


# ── help and errors ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["umount", "--help"], ["discover", "--help"], ["ping", "--help"], ["doctor", "--help"]],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys; from aoefs.cli.main import main; code = main({}); print(*sys.modules, file=sys.stderr); exit(code)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program.format(arguments)], capture_output=True, text=True, check=True
    )
    assert answer.stdout
    loaded = set(answer.stderr.split())
    assert not loaded & (HEAVY - ({"subprocess", "ctypes", "logging"} if arguments[0] != "--help" else set()))


def test_help_names_every_command_and_word_of_the_mount() -> None:
    text = aoefs("--help").stdout
    assert all(f"\n  {name} " in text for name in cli.COMMANDS)
    assert "--deadsecs SECONDS" in text


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_help_that_fits(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: aoefs {command} ")
    assert "(see" not in text


def test_the_version_is_told() -> None:
    assert aoefs("--version").stdout == f"aoefs {__version__} ({'compiled' if is_compiled() else 'pure Python'})\n"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "no mount point given"),
        (["--frobnicate"], 2, "unrecognized arguments: --frobnicate (see aoefs --help)"),
        (["umount"], 2, "required: MOUNTPOINT (see aoefs umount --help)"),
        (["umount", "/mnt", "--frob"], 2, "unrecognized arguments: --frob"),
        (["dicsover"], 2, "there is no 'dicsover': for the command write 'aoefs discover ...'"),
        (["pnig", "0.1"], 2, "there is no 'pnig': for the command write 'aoefs ping ...'"),
        (["-v", "status", "/mnt"], 2, "there is no 'status': for the command write 'aoefs status ...'"),
        (["/nowhere/at/all"], 1, "/nowhere/at/all does not exist: 'mkdir -p"),
        (["/etc/hostname"], 1, "is not a directory"),
        (["/etc"], 1, "is not empty"),
        (["/proc"], 1, "is mounted already (proc)"),
        (["umount", "/proc"], 1, "/proc is not an aoefs mount"),
        (["umount", "/nowhere"], 1, "/nowhere is not mounted"),
        (["status", "/nowhere"], 1, "/nowhere is not mounted"),
        (["status", "--watch", "0.09", "/mnt"], 2, "argument --watch: '0.09' is less than 0.1 seconds"),
        (["discover", "-i", "nowhere0"], 1, "interface nowhere0 does not exist"),
        (["discover", "--timeout", "soon"], 2, "'soon' is not a number of seconds"),
        (["ping"], 2, "required: X.Y (see aoefs ping --help)"),
        (["ping", "disk"], 2, "'disk' is not a target address: write shelf.slot"),
        (["ping", "e0.255"], 2, "slot 0 to 254 (65535 and 255 are broadcast)"),
        (["ping", "0.0", "-c", "0"], 2, "'0' is not a whole number from 1"),
        (["ping", "0.0", "-W", "0"], 2, "--timeout 0 waits for no answer"),
        (["ping", "0.0", "-i", "nowhere0"], 1, "interface nowhere0 does not exist"),
        (["config", "65535.255"], 2, "is out of range"),
        (["config", "0.0", "set"], 2, "config e0.0 set needs a STRING"),
        (["config", "0.0", "get", "x"], 2, "prints, and takes no STRING"),
        (["config", "0.0", "test", "x", "--force"], 2, "--force belongs to 'set'"),
        (["config", "0.0", "set", "ä" * 513], 2, "1026 bytes; the protocol allows 1024"),
        (["config", "0.0", "put", "x"], 2, "invalid choice: 'put'"),
        (["config", "0.0", "-i", "nowhere0", "set", "x"], 1, "interface nowhere0 does not exist"),
        (["identify", "0.0", "--raw", "--smart"], 2, "--raw goes with neither"),
        (["reserve", "0.0", "set", "1:2"], 2, "'1:2' is not a MAC address"),
        (["reserve", "0.0", "release", "02:00:00:00:00:01"], 2, "reserve e0.0 release takes no MAC"),
        (["reserve", "0.0", "force", *["02:00:00:00:00:01"] * 65], 2, "65 MACs are more than the 64"),
        (["mask", "0.0", "add"], 2, "mask e0.0 add needs at least one MAC"),
        (["mask", "0.0", "get", "02:00:00:00:00:01"], 2, "mask e0.0 get takes no MAC"),
        (["mask", "0.0", "add", *["02:00:00:00:00:01"] * 65], 2, "at most 64 MACs"),
        (["path-test", "0.0", "1.2.3"], 2, "'1.2.3' is not a target address"),
        (["path-test", "-i", "nowhere0"], 1, "interface nowhere0 does not exist"),
        (["doctor", "0.0"], 2, "unrecognized arguments: 0.0"),
    ],
)
def test_a_mistake_gets_one_line_and_its_code(arguments: list[str], code: int, says: str) -> None:
    answer = aoefs(*arguments)
    assert answer.returncode == code
    assert answer.stdout == ""
    assert answer.stderr.startswith("aoefs: ")
    assert answer.stderr.count("\n") == 1
    assert says in answer.stderr


@pytest.mark.parametrize(
    "arguments",
    [["discover", "-i", "aoe0"], ["-i", "aoe0"], ["ping", "0.0"], ["mask", "0.0", "-i", "aoe0"], ["path-test"]],
)
def test_without_the_right_to_raw_ethernet_one_line_says_so(lab: Lab, arguments: list[str]) -> None:
    require("setpriv")
    (lab.directory / "mnt").mkdir()
    drop = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", sys.executable, "-m", "aoefs"]
    where = [str(lab.directory / "mnt")] if arguments[0] == "-i" else []
    answer = lab.run(INITIATOR, [*drop, *arguments, *where], check=False)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == "aoefs: no permission for raw Ethernet: run as root, or with the capability CAP_NET_RAW\n"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["down"], "interface aoe0 is down: bring it up with 'ip link set aoe0 up'"),
        (["mtu", "500"], "interface aoe0: MTU 500 is too small for one sector: 'ip link set aoe0 mtu 1500'"),
    ],
)
def test_an_interface_that_cannot_be_used_is_named_by_mount_and_discover(
    lab: Lab, change: list[str], says: str
) -> None:
    lab.ip(INITIATOR, "link", "set", "aoe0", *change)
    (lab.directory / "mnt").mkdir()
    for arguments in (["discover"], [str(lab.directory / "mnt")]):
        answer = lab.run(INITIATOR, [sys.executable, "-m", "aoefs", *arguments, "-i", "aoe0"], check=False)
        assert (answer.returncode, answer.stderr) == (1, f"aoefs: {says}\n")


# ── what main() makes of what a command does ──────────────────────────────────────────────────────────────────────


def run_instead(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the command ``status`` raise this."""

    def run(arguments: object) -> int:
        raise error

    monkeypatch.setattr("aoefs.cli.commands.status.run", run)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("two\nlines", exit_code=5), 5, "aoefs: two lines\n"),
        (KeyboardInterrupt(), 130, ""),
        (ZeroDivisionError("a\nb"), 1, "aoefs: unexpected ZeroDivisionError: a b (-v says where)\n"),
    ],
)
def test_what_a_command_raises_becomes_a_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, says: str
) -> None:
    run_instead(monkeypatch, error)
    assert cli.main(["status", "/mnt"]) == code
    assert capsys.readouterr() == ("", says)


def test_with_verbose_a_defect_shows_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_instead(monkeypatch, ZeroDivisionError("a"))
    assert cli.main(["status", "/mnt", "-v"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("aoefs: unexpected ZeroDivisionError: a (-v says where)\n")


def test_a_reader_that_goes_away_is_no_defect() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = ["env", "-u", "PYTHONUNBUFFERED", sys.executable, "-m", "aoefs", "--help"]
    answer = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert (answer.returncode, answer.stderr) == (141, b"")


# ── umount ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_umount_returns_when_the_daemon_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with standin(path, "slow-exit") as process:
        started = time.monotonic()
        answer = aoefs("umount", path)
        assert time.monotonic() - started >= 0.5
        assert (answer.returncode, answer.stdout + answer.stderr) == (0, "")
        assert process.wait(0.5) == 0
        assert not is_mounted(path)


def test_umount_of_a_busy_mount_names_the_holders_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with standin(path) as process:
        with subprocess.Popen(["sleep", "60"], cwd=path) as holder:
            answer = aoefs("umount", path)
            says = f"aoefs: {path} is busy: used by sleep (pid {holder.pid}); end that, or see --lazy\n"
            assert (answer.returncode, answer.stderr) == (1, says)
            assert is_mounted(path)
            answer = aoefs("umount", "--lazy", path)
            assert (answer.returncode, answer.stderr) == (0, "")
            assert not is_mounted(path)
            assert process.poll() is None
            holder.kill()
        assert process.wait(10) == 0


def test_umount_reports_a_target_that_could_not_be_flushed(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with standin(path, "flush-fails") as process:
        answer = aoefs("umount", path)
        says = f"aoefs: {path}/e0.0 could not be flushed: Input/output error: its last writes may be lost\n"
        assert (answer.returncode, answer.stderr) == (1, says)
        assert process.wait(10) == 0


def test_umount_clears_what_a_killed_daemon_left(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with standin(path) as process:
        process.kill()
        process.wait()
        assert aoefs("status", path).stderr == (
            f"aoefs: {path} does not tell its status: its daemon is dead: 'aoefs umount' removes it\n"
        )
        answer = aoefs("umount", path)
        says = f"aoefs: the mount process of {path} was dead already: unmounted\n"
        assert (answer.returncode, answer.stderr) == (0, says)
        assert not is_mounted(path)
        assert aoefs("umount", path).stderr == f"aoefs: {path} is not mounted\n"


def test_umount_tells_what_it_waits_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("aoefs.cli.commands.umount._PATIENCE_SECONDS", 0.05)
    from aoefs.cli.commands.umount import _wait

    with subprocess.Popen(["sleep", "0.3"]) as process:
        descriptor = os.pidfd_open(process.pid)
        _wait(descriptor, process.pid)
        os.close(descriptor)
        assert process.poll() == 0
    assert (
        capsys.readouterr().err
        == f"aoefs: waiting for the mount process (pid {process.pid}), which is still flushing\n"
    )


# ── status and discover ───────────────────────────────────────────────────────────────────────────────────────────


def test_status_prints_the_status_file_or_tables(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with standin(path) as process:
        status = json.loads(aoefs("status", "--json", path).stdout)
        assert status["pid"] == process.pid
        pictures = [aoefs("status", *options, path).stdout for options in (["--once"], [])]
    assert pictures[0] == pictures[1]  # a pipe is no terminal to draw in
    targets, paths = pictures[0].split("\n\n")
    assert targets.splitlines()[0].split()[:6] == ["target", "state", "size", "model", "serial", "read"]
    assert targets.splitlines()[1].split()[:9] == [
        "e0.0",
        "up",
        "1.00",
        "MiB",
        "Stand-in\\x1b[2J",
        "S1",
        "4.00",
        "KiB",
        "0",
    ]
    assert len(targets.splitlines()) == 3
    assert [line.split()[:4] for line in paths.splitlines()[1:]] == [
        ["e0.1", "silent", "aoe0", "02:ae:00:00:02:00"],
        ["e0.0", "ok", "aoe0", "02:ae:00:00:02:00"],
    ]


def target(name: str, config: str = "") -> dict[str, object]:
    paths = [
        {"interface": interface, "mac": "02:00:00:00:00:01", "bufcnt": 16, "sectors": sectors}
        for interface, sectors in (("aoe0", 2), ("aoe1", 17), ("aoe0", 2))
    ]
    text = {"model": "M", "serial": "S", "firmware": "F", "config": config, "state": "up"}
    return {"name": name, "shelf": 0, "slot": 0, "size": 10 << 30, **text, "paths": paths}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The targets that answer; nothing is sent."""
    found: list[dict[str, object]] = []

    def discover_once(interfaces: Sequence[str], seconds: float) -> list[dict[str, object]]:
        assert (interfaces, seconds) == (["aoe0"], 0.5)
        return found

    monkeypatch.setitem(sys.modules, "aoefs.status.report", types.SimpleNamespace(discover_once=discover_once))
    return found


def discover(lab: Lab, *arguments: str) -> int:
    with lab.inside(INITIATOR):
        return cli.main(["discover", "-i", "aoe0", "--timeout", "0.5", *arguments])


def test_discover_lists_what_answers(
    lab: Lab, answers: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    answers += [target("e0.0", "any\x1b[31m thing"), target("e1.10")]
    assert discover(lab) == 0
    assert capsys.readouterr().out.splitlines() == [
        "name   size      model  serial  interfaces  payload    state  config",
        "e0.0   10.0 GiB  M      S       aoe0,aoe1   1024/8704  up     any\\x1b[31m thing",
        "e1.10  10.0 GiB  M      S       aoe0,aoe1   1024/8704  up",
    ]
    assert discover(lab, "--json") == 0
    assert json.loads(capsys.readouterr().out) == answers


def test_discover_lists_who_answers_without_being_a_disk_and_says_why(
    lab: Lab, answers: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = {"interface": "aoe0", "mac": "02:00:00:00:00:01", "bufcnt": 16, "sectors": 2}
    stranger = {**target("e1.1"), "size": None, "model": "", "serial": "", "state": "no answer", "paths": [path]}
    answers += [target("e0.0"), {**stranger, "reason": "a mask\x1b[2J may leave this host out"}]
    assert discover(lab) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[2].split() == ["e1.1", "aoe0", "1024", "no", "answer"]
    assert captured.err == "aoefs: e1.1 (02:00:00:00:00:01 on aoe0): a mask\\x1b[2J may leave this host out\n"


def test_a_dead_path_shows_in_the_table() -> None:
    ways = (("aoe0", True), ("aoe1", False), ("aoe2", True), ("aoe2", False), ("aoe2", False))
    paths = [{"interface": name, "sectors": 2, "healthy": healthy} for name, healthy in ways]
    assert target_row({**target("e0.0"), "paths": paths})[4] == "aoe0,aoe1(dead),aoe2(2 of 3 dead)"


def test_discover_without_any_answer_says_what_to_check(
    lab: Lab, answers: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert discover(lab, "--json") == 1
    captured = capsys.readouterr()
    assert captured.out == "[]\n"
    assert captured.err.startswith("aoefs: no target answered on aoe0 within 0.5 s: check the cable")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (10 * 1024 - 1, "10.0 KiB"),
        (10 * 1024, "10.0 KiB"),
        (1023 << 20, "1.00 GiB"),
        (500 << 20, "500 MiB"),
        (1 << 57, "128 PiB"),
        (1 << 63, "8192 PiB"),
    ],
)
def test_sizes_have_three_digits_and_a_unit(size: int, text: str) -> None:
    assert format_size(size) == text


def test_nothing_from_the_network_is_obeyed_by_a_terminal() -> None:
    assert printable("a\x1b]0;x\x07\x9b1mÄ\u202e") == "a\\x1b]0;x\\x07\\x9b1mÄ\\x202e"


def test_on_a_terminal_the_table_fits_and_markup_stays_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    print_table(("name", "config"), [["e0.0", "[red]x[/red] " + "long " * 12]])
    lines = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 40
    assert "[red]x[/red]" in lines[1]


def test_an_interrupt_ends_a_command_with_130(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with standin(path, "slow-exit"), subprocess.Popen([sys.executable, "-m", "aoefs", "umount", path]) as process:
        wait_until(lambda: not is_mounted(path), what="unmounted")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
