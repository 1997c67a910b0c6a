"""The examples do what they show."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoefs.cli import main as cli
from aoefs.cli.manual import actions, data
from aoefs.cli.options import mount_options
from tests.host.livemount import NOBODY
from tests.lab import COMMANDS, INITIATOR, Lab, require

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
READ_SECTORS = [Path(sys.executable), EXAMPLES / "read_sectors.py"]


def test_sectors_are_read_without_a_mount(lab: Lab) -> None:
    disk = lab.image("disk", 1 << 20)
    lab.vblade(3, 4, disk)
    for lba, count in ((0, 1), (1000, 3), (2047, 1)):
        answer = lab.run(INITIATOR, [*READ_SECTORS, "aoe0", "3.4", lba, count])
        rows = [line.split("  |")[0].split("  ") for line in answer.stdout.splitlines()]
        assert [int(row[0], 16) for row in rows] == list(range(lba * 512, (lba + count) * 512, 16))
        data = b"".join(bytes.fromhex("".join(row[1:])) for row in rows)
        assert data == disk.read_bytes()[lba * 512 : (lba + count) * 512]
        assert answer.stderr == "e3.4: Coraid EtherDrive vblade, serial " + answer.stderr.split("serial ")[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["aoe0", "9.9", "0", "1"], "e9.9 does not answer on aoe0"),
        (["aoe0", "3.4", "2047", "2"], "sectors 2047 to 2048 are not all within e3.4"),
        (["nowhere", "3.4", "0", "1"], "nowhere: No such device"),
        (["aoe0", "3.4", "0"], "usage: .*"),
        (["aoe0", "3.4", "0", "0"], "usage: .*"),
        (["aoe0", "65535.4", "0", "1"], "usage: .*"),
    ],
)
def test_reading_sectors_that_are_not_there_is_one_line(lab: Lab, arguments: list[str], says: str) -> None:
    lab.vblade(3, 4, lab.image("disk", 1 << 20))
    answer = lab.run(INITIATOR, [*READ_SECTORS, *arguments], check=False)
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert re.fullmatch(rf"(read_sectors\.py: )?{says}", answer.stderr.splitlines()[-1])
    assert "Traceback" not in answer.stderr


def run_walk_through(name: str, tmp_path: Path) -> tuple[str, str]:
    """The stdout and stderr of a script, which must succeed and leave nothing."""
    path = f"{COMMANDS}{os.pathsep}{os.environ['PATH']}{os.pathsep}/usr/sbin"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PATH": path}
    # In a mount namespace of its own: labs of other tests copy all mounts that they find; umount would wait for those.
    script = subprocess.Popen(
        ["unshare", "--mount", EXAMPLES / name],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = script.communicate(timeout=300)
    assert script.returncode == 0, err
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    namespaces = os.listdir("/run/netns") if Path("/run/netns").exists() else []
    assert not [name for name in namespaces if name.startswith(f"aoefs-example-{script.pid}-")]
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            assert str(tmp_path) not in file.read_text()
    return out, err


def test_the_walk_through_with_vblade_and_ext4_works_and_cleans_up(tmp_path: Path) -> None:
    require("ip", "nsenter", "vblade", "mkfs.ext4", "e2fsck", "mountpoint", "/dev/fuse", "/dev/loop-control")
    out, _ = run_walk_through("vblade-mkfs.sh", tmp_path)
    assert "Coraid EtherDrive vblade" in out
    assert out.endswith("done: the file system is whole\n")


def test_a_pool_of_two_targets_survives_the_damage_of_one(tmp_path: Path) -> None:
    require("ip", "nsenter", "mkfs.btrfs", "btrfs", "losetup", "mountpoint", "/dev/fuse", "/dev/loop-control")
    out, err = run_walk_through("pool-btrfs.sh", tmp_path)
    first, second = re.findall(r"^\[(/dev/loop\d+)\]\.corruption_errs +\d+$", out, re.MULTILINE)
    assert re.search(rf"^\[{first}\]\.corruption_errs +0$", out, re.MULTILINE), out
    assert not re.search(rf"^\[{second}\]\.corruption_errs +0$", out, re.MULTILINE), out
    assert "Uncorrectable:  0" in out or "errors detected" not in out + err
    assert out.endswith("done: the pool is whole\n")


FAKE_PYTHON = """#!/bin/sh
case "$*" in
"-m venv --clear .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
"-m pip "*)
    printf '#!/bin/sh\\necho "demo as $(id -u): $*"\\n' >.venv/bin/aoefs
    chmod +x .venv/bin/aoefs
    mkdir -p aoefs/net && touch aoefs/net/frames.abi3.so
    ;;
-V) echo Python 3.12.0 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A user's checkout for quickstart.sh, on a host with all packages, where Python only pretends to install."""
    require("setpriv")
    with tempfile.TemporaryDirectory() as place:  # pytest's directories are root's alone
        made, programs = Path(place, "aoefs"), Path(place, "programs")
        os.chmod(place, 0o755)
        programs.mkdir()
        for name, text in {"python3": FAKE_PYTHON, "dpkg-query": "#!/bin/sh\nprintf installed\n"}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        for name in ("aoefs", ".build"):
            (made / name).mkdir(parents=True)
        for name in ("pyproject.toml", ".build/backend.py", "aoefs/module.py"):
            (made / name).touch()
        shutil.copytree(EXAMPLES, made / "examples")
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", place], check=True)
        yield made


def quickstart(checkout: Path, *before: str) -> subprocess.CompletedProcess[str]:
    path = f"{checkout.parent}/programs{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    command = [*before, str(checkout / "examples/quickstart.sh"), "--keep"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_the_quickstart_leaves_no_files_of_root_in_the_checkout_of_a_user(checkout: Path) -> None:
    answer = quickstart(checkout)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "demo as 0: demo --keep\n" in answer.stdout
    assert (checkout / ".venv/installed-aoefs").exists()
    assert {path.lstat().st_uid for path in checkout.rglob("*")} == {NOBODY}


def test_the_quickstart_needs_no_root_where_every_package_is_installed(checkout: Path) -> None:
    as_user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    answer = quickstart(checkout, *as_user)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert f"demo as {NOBODY}: demo --keep\n" in answer.stdout
    (checkout.parent / "programs/dpkg-query").write_text("#!/bin/sh\nexit 1\n")
    answer = quickstart(checkout, *as_user)
    assert answer.returncode == 2
    assert re.search(r"needs root, for the packages python3 .*: run it with sudo\n", answer.stderr)


def test_the_quickstart_says_what_takes_so_long_and_what_comes_next(checkout: Path) -> None:
    said = quickstart(checkout).stdout
    assert "pip fetches its packages, then compiles pyfuse3 and aoefs" in said
    nexts = said.partition("What next?\n")[2].splitlines()
    assert [line.split("#")[0].split()[-2:] for line in nexts] == [
        ["demo", "--keep"],
        [f"{checkout}/.venv/bin/aoefs", "doctor"],
        [f"{checkout}/.venv/bin/aoefs", "install"],
    ]
    assert "compiles" not in quickstart(checkout).stdout  # once is enough


def test_scripts_are_executable_and_have_no_syntax_error() -> None:
    for script in (*EXAMPLES.glob("*.sh"), *(ROOT / "tests").glob("*.sh")):
        if script.name != "prepare.sh":  # which the others source
            assert os.access(script, os.X_OK), script
        subprocess.run(["sh", "-n", script], check=True)


def test_the_readme_names_every_command_and_no_option_that_is_not_there() -> None:
    readme = (ROOT / "README.md").read_text()
    parsers = cli.all_parsers()
    assert all(f"aoefs {command} " in readme for command in parsers if command is not None)
    known = {option for parser in parsers.values() for action in actions(parser) for option in action.option_strings}
    foreign = {"--now", "--sparse", "--net"}  # of systemctl, cp, nsenter
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", readme)) <= known | foreign


def test_the_readme_is_short_and_has_its_parts_in_order() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    order = [
        "**Status:**",
        "## Try it",
        "## Install",
        "## A session",
        "## What is durable",
        "> **It is a file",
        "## Where",
    ]
    places = [readme.index(part) for part in order]
    assert places == sorted(places)
    assert "**`qemu-img convert`**" in readme
    assert "frames/s" not in readme + data("aoefs.1.in")  # figures are in BENCHMARKS.md


def test_the_packages_of_the_install_line_are_those_of_the_quickstart() -> None:
    [line] = re.findall(r"^ +sudo apt install (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    [known] = re.findall(r"^run_packages='(.*)'$", (EXAMPLES / "prepare.sh").read_text(), re.MULTILINE)
    there = {"python3", "iproute2", "mount", "e2fsprogs"}  # on every Debian, and python3 comes with the others
    assert set(line.split()) == set(known.split()) - there


def test_the_session_of_the_readme_works_as_written(tmp_path: Path) -> None:
    require("ip", "nsenter", "unshare", "mkfs.ext4", "/dev/fuse", "/dev/loop-control")
    [session] = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    own = "mkdir -p /run/netns; mount -t tmpfs none /run/netns; mount -t tmpfs none /mnt"
    path = f"{COMMANDS}{os.pathsep}{os.environ['PATH']}{os.pathsep}/usr/sbin"
    script = (
        subprocess.Popen(  # the names in it are for one machine: in a mount namespace of its own nothing is in the way
            ["unshare", "--mount", "sh", "-e", "-c", f"{own}\n{session}"],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )
    out, err = script.communicate(timeout=300)
    assert script.returncode == 0, err
    assert re.search(r"^e0\.1 +1\.00 GiB +aoefs software target", out, re.MULTILINE)
    assert re.search(r"^-rw------- 1 root root 1073741824 .* e0\.1$", out, re.MULTILINE)
    assert "1073741824 bytes (1.1 GB, 1.0 GiB) copied" in err


def test_the_configuration_file_works_after_the_install_line_and_an_error_names_the_extra(lab: Lab) -> None:
    point, site = lab.directory / "point", lab.directory / "site"
    point.mkdir()
    site.mkdir()
    (site / "sitecustomize.py").write_text("import sys\nsys.modules['prometheus_client'] = None\n")  # pip install .
    without = ["env", f"PYTHONPATH={site}{os.pathsep}{ROOT}", str(COMMANDS / "aoefs"), "--check"]
    config = lab.directory / "aoefs.toml"
    [example] = re.findall(r"^ {4}interface = .*\n {4}deadsecs = .*\n", (ROOT / "README.md").read_text(), re.MULTILINE)
    config.write_text(textwrap.dedent(example).replace("eth1", "aoe0"))
    answer = lab.run(INITIATOR, [*without, "--config", config, point])
    assert answer.stdout + answer.stderr == ""
    answer = lab.run(INITIATOR, [*without, "--config", config, "-o", "metrics=9100", point], check=False)
    pip = rf"'{re.escape(str(COMMANDS))}/python[0-9.]* -m pip install aoefs\[metrics\]'"
    says = f"aoefs: --metrics needs the Python package prometheus_client: {pip}, or leave metrics out\n"
    assert answer.returncode == 1
    assert re.fullmatch(says, answer.stderr)


def test_the_configuration_file_of_the_readme_and_of_the_manual_can_be_read(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    page = data("aoefs.1.in").replace("\\-", "-")
    for text in (readme, page):
        file = tmp_path / "aoefs.toml"
        [example] = re.findall(r"^ *interface = .*\n(?: *[a-z-]+ = .*\n)+", text, re.MULTILINE)
        file.write_text(textwrap.dedent(example))
        arguments = cli.build_parser(None).parse_args(["/mnt", "--config", str(file)])
        assert mount_options(arguments).deadsecs == 30
