"""The command line as a person meets it: help, one-line errors, exit codes, and the commands beside the mount."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from aoefs import __version__, is_compiled
from aoefs.cli import main as cli
from aoefs.errors import UserError
from tests.cli.commandline import aoefs
from tests.lab import INITIATOR, Lab, require

HEAVY = {"trio", "pyfuse3", "rich", "asyncio", "subprocess", "logging", "ctypes"}


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


def test_help_shows_what_people_use_and_help_all_the_rest() -> None:
    short, whole = aoefs("--help").stdout, aoefs("--help-all").stdout
    assert all(f"\n  {name} " in text for name in cli.COMMANDS for text in (short, whole))
    assert all("--deadsecs SECONDS" in text for text in (short, whole))
    rare = ("--plain-loop", "--max-targets", "--shards", "--pid-file")
    assert not [option for option in rare if option in short]
    assert all(option in whole for option in rare)
    assert len(short.splitlines()) < 60


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_help_that_fits(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: aoefs {command} ")
    assert "(see" not in text


def test_the_version_is_printed() -> None:
    assert aoefs("--version").stdout == f"aoefs {__version__} ({'compiled' if is_compiled() else 'pure Python'})\n"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "no mount point given"),
        (["--frobnicate"], 2, "unrecognized arguments: --frobnicate (see aoefs --help)"),
        (["umount"], 1, "aoefs has nothing mounted here"),
        (["events"], 1, "aoefs has nothing mounted here"),
        (["umount", "/mnt", "--frob"], 2, "unrecognized arguments: --frob"),
        (["dicsover"], 2, "there is no 'dicsover': for the command write 'aoefs discover ...'"),
        (["pnig", "0.1"], 2, "there is no 'pnig': for the command write 'aoefs ping ...'"),
        (["-v", "status", "/mnt"], 2, "there is no 'status': for the command write 'aoefs status ...'"),
        (["mount", "eth1", "/mnt"], 2, "mounting has no command word: 'aoefs eth1 /mnt'"),
        (["mount", "-i", "eth1", "/mnt"], 2, "mounting has no command word: 'aoefs -i eth1 /mnt'"),
        (["mount"], 2, "mounting has no command word: 'aoefs [SOURCE] MOUNTPOINT'"),
        (["list"], 2, "there is no 'list': for the command write 'aoefs discover ...'"),
        (["ls", "--json"], 2, "there is no 'ls': for the command write 'aoefs discover ...'"),
        (["unmount", "/mnt"], 2, "there is no 'unmount': for the command write 'aoefs umount ...'"),
        (["/mnt/aoe", "eth1"], 2, "'/mnt/aoe' names no interface: the mount point comes last: aoefs eth1 /mnt/aoe"),
        (["/mnt/aoe", "/mnt/b"], 2, "'/mnt/aoe' names no interface: SOURCE is eth0,eth1, or any"),
        (["/mnt", "--deadsec=30"], 2, "unrecognized arguments: --deadsec=30: did you mean --deadsecs? (see"),
        (["/mnt", "--timout=3"], 2, "unrecognized arguments: --timout=3 (see aoefs --help)"),  # nothing is like it
        (["discover", "--timout", "3"], 2, "did you mean --timeout? (see aoefs discover --help)"),
        (["/mnt", "--direct=yes"], 2, "--direct takes no value (see"),
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
        (["config", "set", "foo"], 2, "the target comes first: aoefs config X.Y set ..."),
        (["mask", "add", "02:00:00:00:00:01"], 2, "the target comes first: aoefs mask X.Y add ..."),
        (["reserve", "release"], 2, "the target comes first: aoefs reserve X.Y release ..."),
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


# ── as a helper of mount(8) ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["mount.aoefs", "mount.fuse.aoefs"])
@pytest.mark.parametrize("source", ["status", "umount,aoe0"])
def test_a_source_that_is_named_like_a_command_is_an_interface(name: str, source: str) -> None:
    """An interface may have any name, and a mount must never become another command."""
    require("/dev/fuse")
    with Lab(pairs=2) as lab:
        lab.target(f"0.1={lab.image('disk', 1 << 20)}", interfaces=["aoe1"])
        lab.ip(INITIATOR, "link", "set", "aoe1", "down")
        lab.ip(INITIATOR, "link", "set", "aoe1", "name", source.partition(",")[0])
        lab.ip(INITIATOR, "link", "set", source.partition(",")[0], "up")
        helper = lab.directory / name
        helper.write_text(f"#!{sys.executable}\nfrom aoefs.cli.main import main\nraise SystemExit(main())\n")
        helper.chmod(0o755)
        point = lab.directory / "point"
        point.mkdir()
        answer = lab.run(INITIATOR, [helper, source, point, "-o", "rw"], check=False)
        assert (answer.returncode, answer.stderr) == (0, "")
        try:
            assert lab.run(INITIATOR, ["ls", point]).stdout == "by-serial\ne0.1\n"
        finally:
            lab.aoefs("umount", point)


def test_an_error_of_a_helper_begins_with_the_mount_point_since_fstab_has_several(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.mount_helper(["eth1", "/mnt/aoe", "-o", "rw,deadsec=30"]) == 1
    says = "aoefs: /mnt/aoe: unknown word 'deadsec=30' in the -o list: did you mean deadsecs?\n"
    assert capsys.readouterr().err == says
    assert cli.mount_helper(["any", "/nowhere/at/all"]) == 32
    assert capsys.readouterr().err == "aoefs: /nowhere/at/all does not exist: 'mkdir -p /nowhere/at/all' first\n"


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


def test_nothing_in_a_traceback_commands_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_instead(monkeypatch, ZeroDivisionError("model \x1b[2J"))
    assert cli.main(["status", "/mnt", "-v"]) == 1
    error = capsys.readouterr().err
    assert "ZeroDivisionError: model \\x1b[2J\n" in error
    assert "\x1b" not in error


def test_a_reader_that_goes_away_is_no_defect() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = ["env", "-u", "PYTHONUNBUFFERED", sys.executable, "-m", "aoefs", "--help"]
    answer = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)
    assert (answer.returncode, answer.stderr) == (141, b"")
