"""``aoefs install``: what it puts in place is good, and what it did not put there it leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aoefs.cli import main as cli
from aoefs.cli.commands.install import HELPERS, RECORD, UMOUNT_HELPERS
from tests.host.livemount import standin
from tests.lab import COMMANDS, require

PREFIX = Path("usr/local")
SHARE = PREFIX / "share"
COMPLETIONS = {
    "bash": SHARE / "bash-completion/completions/aoefs",
    "zsh": SHARE / "zsh/site-functions/_aoefs",
    "fish": SHARE / "fish/vendor_completions.d/aoefs.fish",
}
PAGES = [SHARE / "man/man1/aoefs.1", SHARE / "man/man1/aoefs-target.1"]
UNIT = PREFIX / "lib/systemd/system/aoefs@.service"
LINKS = [Path("sbin", name) for name in HELPERS + UMOUNT_HELPERS] + [PREFIX / "bin/aoefs"]


def install(root: Path, *arguments: str | Path) -> int:
    return cli.main(["install", "--destdir", str(root), *map(str, arguments)])


def files(root: Path) -> set[Path]:
    return {path.relative_to(root) for path in root.rglob("*") if path.is_symlink() or not path.is_dir()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with everything in place, only to be read."""
    path = tmp_path_factory.mktemp("root")
    assert install(path) == 0
    return path


# ── putting it there, and taking it back ──────────────────────────────────────────────────────────────────────────


def test_each_path_is_said_and_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install(tmp_path) == 0
    wanted = {UNIT, *PAGES, *COMPLETIONS.values(), *LINKS}
    assert files(tmp_path) == wanted | {PREFIX / RECORD}
    said = capsys.readouterr().out.splitlines()
    assert {Path(line.split()[1]) for line in said} == {tmp_path / path for path in wanted}
    for link in LINKS:
        assert os.readlink(tmp_path / link) == str(COMMANDS / "aoefs")
    assert f"ExecStart={COMMANDS}/aoefs -f %f\n" in (tmp_path / UNIT).read_text()
    assert all((tmp_path / path).stat().st_mode & 0o777 == 0o644 for path in (UNIT, *PAGES))


def test_what_was_installed_is_taken_back_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sbin").mkdir()
    (tmp_path / SHARE / "man/man1").mkdir(parents=True)
    (tmp_path / SHARE / "man/man1/other.1").touch()
    before = sorted(tmp_path.rglob("*"))
    assert install(tmp_path) == 0
    assert install(tmp_path) == 0  # again
    assert install(tmp_path, "--remove") == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert install(tmp_path, "--remove") == 1
    assert "nothing is installed below" in capsys.readouterr().err


def test_a_dry_run_says_the_same_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install(tmp_path, "--dry-run") == 0
    would = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert install(tmp_path) == 0
    assert capsys.readouterr().out == would
    there = files(tmp_path)
    assert install(tmp_path, "--remove", "--dry-run") == 0
    assert len(capsys.readouterr().out.splitlines()) == len(would.splitlines())
    assert files(tmp_path) == there


def test_what_somebody_else_put_there_stops_it_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    helper = tmp_path / "sbin/mount.aoefs"
    helper.parent.mkdir()
    helper.write_text("mine")
    assert install(tmp_path) == 1
    assert capsys.readouterr().err == (
        f"aoefs: {helper} is not of this command's making, or was changed: move it away first\n"
    )
    assert files(tmp_path) == {Path("sbin/mount.aoefs")}


def test_what_somebody_changed_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install(tmp_path) == 0
    (tmp_path / UNIT).write_text("[Service]\n")
    (tmp_path / LINKS[0]).unlink()
    assert install(tmp_path) == 1
    assert "aoefs@.service is not of this" in capsys.readouterr().err
    assert install(tmp_path, "--remove") == 1
    assert capsys.readouterr().err == f"aoefs: {tmp_path / UNIT} was changed since: it stays\n"
    assert files(tmp_path) == {UNIT}


def test_another_version_replaces_its_files_and_removes_what_it_no_longer_has(tmp_path: Path) -> None:
    assert install(tmp_path) == 0
    record = tmp_path / PREFIX / RECORD
    known = json.loads(record.read_text())
    old = tmp_path / SHARE / "man/man1/aoefs-old.1"
    old.write_text((tmp_path / UNIT).read_text())
    known["files"][f"/{old.relative_to(tmp_path)}"] = known["files"][f"/{UNIT}"]
    record.write_text(json.dumps(known))
    assert install(tmp_path, "--command", "/opt/new version/100%/aoefs") == 0
    assert not old.exists()
    assert 'ExecStart="/opt/new version/100%%/aoefs" -f %f\n' in (tmp_path / UNIT).read_text()
    assert os.readlink(tmp_path / LINKS[0]) == "/opt/new version/100%/aoefs"


def test_a_failure_in_the_middle_takes_back_what_was_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / PREFIX).mkdir(parents=True)
    (tmp_path / "sbin").symlink_to("nowhere/at/all")
    before = sorted(tmp_path.rglob("*"))
    assert install(tmp_path) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"aoefs: {tmp_path}/sbin")
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--prefix", "here"], 2, "--prefix here is not an absolute path"),
        (["--command", "aoefs"], 2, "--command aoefs is not an absolute path"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install(tmp_path, *arguments) == code
    assert capsys.readouterr().err == f"aoefs: {says}\n"


def test_without_shtab_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert install(tmp_path) == 1
    pip = f"'{sys.executable} -m pip install shtab'"
    assert capsys.readouterr().err == f"aoefs: 'aoefs install' needs the Python package shtab: {pip}\n"
    assert list(tmp_path.iterdir()) == []


# ── completions ───────────────────────────────────────────────────────────────────────────────────────────────────


def complete(root: Path, *words: str) -> set[str]:
    """What bash offers for the last of these words."""
    program = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_aoefs; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "-c", program, "bash", str(root / COMPLETIONS["bash"]), "aoefs", *words]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_bash_completes_commands_options_interfaces_and_directories(root: Path, tmp_path: Path) -> None:
    require("bash", root=False)
    assert complete(root, "") >= set(cli.COMMANDS)
    assert complete(root, "--pid") == {"--pid-file"}
    assert complete(root, "status", "--js") == {"--json"}
    assert complete(root, "-i", "") == set(os.listdir("/sys/class/net")) - {"lo"}
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    assert complete(root, "demo", f"{tmp_path}/") == {f"{tmp_path}/directory"}


def test_bash_completes_the_path_of_an_export_in_one_word_or_three(root: Path, tmp_path: Path) -> None:
    require("bash", root=False)
    (tmp_path / "disk.img").touch()
    assert complete(root, "target", "0.1", "=", f"{tmp_path}/d") == {f"{tmp_path}/disk.img"}
    assert complete(root, "target", f"0.1={tmp_path}/d") == {f"0.1={tmp_path}/disk.img"}
    assert complete(root, "target", "0.1", "=") >= {"README.md"}


def test_bash_completes_nothing_but_mounts_where_a_mount_is_wanted(root: Path, tmp_path: Path) -> None:
    require("bash")
    (tmp_path / "directory").mkdir()
    with standin(tmp_path / "mount"):
        for command in ("umount", "status", "events"):
            assert complete(root, command, f"{tmp_path}/") == {f"{tmp_path}/mount"}


@pytest.mark.parametrize("check", [["zsh", "-n"], ["fish", "--no-execute"], ["bash", "-n"]], ids=lambda check: check[0])
def test_a_completion_is_good_for_its_shell(check: list[str], root: Path) -> None:
    require(check[0], root=False)
    answer = subprocess.run([*check, root / COMPLETIONS[check[0]]], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_fish_completes_commands_and_options(root: Path) -> None:
    require("fish", root=False)
    program = "source $argv[1]; complete -C 'aoefs st'; complete -C 'aoefs status --js'"
    command = ["fish", "--no-config", "-c", program, str(root / COMPLETIONS["fish"])]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split("\t")[0] for line in answer.stdout.splitlines()] == ["status", "--json"]


# ── the unit ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_unit_hides_its_mount_from_nobody(root: Path) -> None:
    """Each of these gives a service a mount namespace of its own: it would start, and nobody would see the disks."""
    names = {line.partition("=")[0] for line in (root / UNIT).read_text().splitlines() if not line.startswith("#")}
    hiding = """BindPaths InaccessiblePaths MountAPIVFS PrivateDevices PrivateMounts PrivateTmp ProtectControlGroups
        ProtectHome ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables ProtectProc
        ProtectSystem ReadOnlyPaths ReadWritePaths RootDirectory TemporaryFileSystem DynamicUser"""
    assert not names & set(hiding.split())
