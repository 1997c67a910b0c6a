"""The live console in a real terminal, over a real mount: keys, sizes, its end; then ``status`` without a screen."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.lab import COMMANDS, INITIATOR, Lab, Mount, is_gone, wait_until
from tests.lab.tmux import Tmux, terminal
from tests.mount.place import MIB

AOEFS = COMMANDS / "aoefs"
FOOTER = "q quits  sort by Name"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab with three disks, of 1, 2 and 3 MiB, for all tests of this module."""
    with Lab(mtu=9000) as made:
        images = [made.image(f"disk{slot}", (slot + 1) * MIB, seed=None) for slot in range(3)]
        made.target(*(f"0.{slot}={image}" for slot, image in enumerate(images)))
        yield made


@pytest.fixture(scope="module")
def mount(lab: Lab) -> Mount:
    """A mount that no test ends."""
    return lab.mount()


Open = Callable[..., AbstractContextManager[Tmux]]


@pytest.fixture
def aoefs(lab: Lab, tmp_path: Path) -> Open:
    """``with aoefs("status", path) as screen``: the command in a terminal."""

    def start(*arguments: str | Path, size: tuple[int, int] = (80, 24)) -> AbstractContextManager[Tmux]:
        return terminal(tmp_path, lab.command(INITIATOR, [AOEFS, *arguments]), size)

    return start


def first_target(screen: Tmux) -> str:
    lines = screen.lines()
    heading = next((number for number, line in enumerate(lines) if line.startswith("TARGET")), len(lines) - 2)
    return lines[heading + 1].partition(" ")[0]


def read(mount: Mount, name: str) -> None:
    mount.lab.run(INITIATOR, ["dd", f"if={mount.file(name)}", "of=/dev/null", "bs=1M", "iflag=direct", "status=none"])


# ── the screen ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_console_fills_any_screen_and_follows_its_size(aoefs: Open, mount: Mount) -> None:
    with aoefs("status", mount.path) as screen:
        for columns, lines in ((80, 24), (200, 50), (40, 8), (80, 24)):
            screen.resize(columns, lines)

            def fits(lines: int = lines, columns: int = columns) -> bool:
                shown = screen.lines()
                return (
                    len(shown) == lines
                    and shown[0].startswith(" aoefs ")
                    and shown[1].startswith("TARGET▲")
                    and ("RTT" in shown[1]) == (columns > 100)
                    and shown[-1].startswith(f" {FOOTER}"[:columns].rstrip())
                    and [line.partition(" ")[0] for line in shown[2:5]] == ["e0.0", "e0.1", "e0.2"]
                )

            screen.wait_until(fits, f"a screen of {columns} by {lines}")


def test_what_is_read_shows_as_a_rate_and_in_the_graph(aoefs: Open, mount: Mount) -> None:
    with aoefs("status", mount.path) as screen:
        screen.wait_for("▁")  # it has read the status twice
        read(mount, "e0.2")
        screen.wait_until(lambda: any("▇" in line for line in screen.lines() if line.startswith("e0.2")), "a full bar")
        screen.press("r")
        screen.wait_for("READ/s▼")


def test_the_screen_is_never_erased_so_that_nothing_flickers(aoefs: Open, mount: Mount, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    with aoefs("status", mount.path) as screen:
        screen.wait_for(FOOTER)
        screen.record(sent)
        screen.wait_until(lambda: sent.exists() and sent.read_bytes().count(b" aoefs ") >= 3, "three screens")
    assert not re.findall(rb"\x1b\[[0-9;]*[JKXLMPS@]", sent.read_bytes())
    assert b"\x1b[H" in sent.read_bytes()  # each screen is drawn over the one before


def test_keys_sort_and_reverse_the_order(aoefs: Open, mount: Mount) -> None:
    with aoefs("status", mount.path) as screen:
        screen.wait_for(FOOTER)
        assert first_target(screen) == "e0.0"
        screen.press("z")
        screen.wait_until(lambda: first_target(screen) == "e0.2", "the largest comes first")
        screen.press("Z")
        screen.wait_until(lambda: first_target(screen) == "e0.0", "the smallest comes first")
        screen.press("n")
        screen.press("n")
        screen.wait_until(lambda: first_target(screen) == "e0.2", "the last name comes first")


def test_arrows_scroll_a_list_that_is_too_long(aoefs: Open, mount: Mount) -> None:
    with aoefs("status", mount.path, size=(80, 5)) as screen:
        screen.wait_for("… and 2 more")
        screen.press("Down")
        screen.wait_for("… and 2 more (1 above)")
        assert first_target(screen) == "e0.1"
        screen.press("End")
        screen.wait_until(lambda: first_target(screen) == "e0.2", "the end of the list")
        screen.press("PageUp")
        screen.press("Up")
        screen.wait_until(lambda: first_target(screen) == "e0.0", "the beginning of the list")


def test_one_target_alone_has_its_events_also_those_that_many_others_followed(aoefs: Open, lab: Lab) -> None:
    mount = lab.mount()
    control = mount.here / ".aoefs"
    while len((control / "events").read_text().splitlines()) < 70:  # of each kind no more than 20 a second are logged
        (control / "interfaces").write_text("any")
        (control / "options").write_text("{}")
    assert "e0.1: " not in json.dumps(mount.status()["events"])
    with aoefs("status", mount.path, size=(120, 40)) as screen:
        screen.wait_for(FOOTER)
        screen.press("Enter", "Down")
        screen.wait_for("info    e0.1: 2.00 MiB, aoefs software target")
    mount.umount()


def test_forty_targets_at_three_sizes_with_help_pause_and_one_target_alone(tmp_path: Path) -> None:
    with Lab(mtu=9000) as lab:
        images = [lab.image(f"disk{slot}", MIB, seed=None) for slot in range(40)]
        lab.target(*(f"1.{slot}={image}" for slot, image in enumerate(images)))
        mount = lab.mount()
        with terminal(tmp_path, lab.command(INITIATOR, [AOEFS, "status", mount.path])) as screen:
            screen.wait_for("40 targets")
            for columns, lines in ((80, 24), (120, 40), (200, 50)):
                screen.resize(columns, lines)

                def is_drawn(lines: int = lines, columns: int = columns) -> bool:
                    shown = screen.lines()
                    process = r"\bcpu +\d+ %" + (r"  up 0:\d\d h  \d\d:\d\d:\d\d" if columns > 80 else "")
                    return len(shown) == lines and "? help" in shown[-1] and re.search(process, shown[0]) is not None

                screen.wait_until(is_drawn, f"a screen of {columns} by {lines}")
                shown = screen.lines()
                assert [line.partition(" ")[0] for line in shown[2:5]] == ["e1.0", "e1.1", "e1.2"]
                assert any(re.match(r"… and \d+ more", line) for line in shown)
                screen.press("?")
                screen.wait_for("Enter                 one target: identity")
                screen.press("?")
                screen.wait_for("TARGET▲")
            screen.press("Space")
            screen.wait_for("paused: the space bar goes on")
            screen.press("Space")
            screen.press("Enter")
            screen.wait_until(lambda: any(line.startswith("serial  ") for line in screen.lines()), "its identity")
            screen.press("Down")
            screen.wait_until(lambda: first_target(screen) == "e1.1", "the next target")
            screen.press("q")
            assert screen.exit_code() == 0
        mount.umount()


# ── its end ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", ["Q", "C-c"])
def test_q_and_ctrl_c_leave_and_the_terminal_is_as_it_was(lab: Lab, tmp_path: Path, mount: Mount, key: str) -> None:
    script = f"trap : INT; echo before; {AOEFS} status {mount.path}; echo code $?; stty -a"
    with terminal(tmp_path, lab.command(INITIATOR, ["sh", "-c", script])) as screen:
        screen.wait_for(FOOTER)
        assert screen.is_full_screen()
        assert not screen.shows("before")
        screen.press(key)
        lines = screen.wait_for("code 0")
        screen.exit_code()
        assert not screen.is_full_screen()
        assert lines[0] == "before"
        modes = " ".join(screen.lines()).split()
        assert {"icanon", "echo", "ixon"} <= set(modes)
    assert mount.mounted


def test_ctrl_z_gives_the_terminal_back_and_fg_goes_on(lab: Lab, tmp_path: Path, mount: Mount) -> None:
    with terminal(tmp_path, lab.command(INITIATOR, ["bash", "--norc", "-i"])) as screen:
        screen.type(f"{AOEFS} status {mount.path}")
        screen.wait_for(FOOTER)
        screen.press("C-z")
        screen.wait_for("Stopped")
        screen.type("stty -a | grep -wo 'icanon'")
        screen.wait_until(lambda: "icanon" in screen.lines(), "the terminal's own mode")
        screen.type("fg")
        screen.wait_for(FOOTER)
        screen.press("q")
        screen.wait_until(lambda: not screen.is_full_screen(), "the console is closed")


def test_a_mount_that_ends_ends_the_console_with_a_message(aoefs: Open, lab: Lab) -> None:
    mount = lab.mount()
    with aoefs("status", mount.path) as screen:
        screen.wait_for(FOOTER)
        mount.umount()
        assert screen.exit_code() == 1
        assert "".join(screen.lines()) == f"aoefs: {mount.path} is not mounted any more"
        assert not screen.is_full_screen()


def test_a_mount_that_is_killed_ends_the_console_with_advice(aoefs: Open, lab: Lab) -> None:
    mount = lab.mount()
    with aoefs("status", mount.path) as screen:
        screen.wait_for(FOOTER)
        os.kill(mount.pid, signal.SIGKILL)
        assert screen.exit_code() == 1
        assert "its daemon is dead: 'aoefs umount' removes it" in "".join(screen.lines())


def test_another_mount_on_the_same_mount_point_ends_the_console(aoefs: Open, lab: Lab) -> None:
    mount = lab.mount()
    with aoefs("status", mount.path) as screen:
        screen.wait_for(FOOTER)
        os.kill(screen.pid, signal.SIGSTOP)
        mount.umount()
        lab.aoefs("-i", "aoe0", mount.path)
        os.kill(screen.pid, signal.SIGCONT)
        assert screen.exit_code() == 1
        assert "another mount is there now" in "".join(screen.lines())
    mount.umount()


def test_a_mount_that_does_not_answer_is_reported_and_q_still_works(aoefs: Open, lab: Lab) -> None:
    mount = lab.mount()
    daemon = mount.pid
    with aoefs("status", mount.path) as screen:
        screen.wait_for(FOOTER)
        os.kill(daemon, signal.SIGSTOP)
        try:
            screen.wait_for("the mount has not answered for")
            assert first_target(screen) == "e0.0"  # the last known state stays
            screen.press("q")
            assert screen.exit_code() == 0
        finally:
            os.kill(daemon, signal.SIGCONT)
    mount.umount()


# ── --console ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def point(lab: Lab, request: pytest.FixtureRequest) -> Path:
    """An empty directory; nothing is mounted on it afterwards."""
    path: Path = lab.directory / request.node.name.translate(str.maketrans("[]", "--"))
    path.mkdir()
    return path


def packet_sockets(lab: Lab) -> int:
    return lab.sides[INITIATOR].packet_sockets()


def test_leaving_the_console_of_a_mount_ends_the_mount(aoefs: Open, lab: Lab, point: Path) -> None:
    before = packet_sockets(lab)
    with aoefs("--console", "-i", "aoe0", point) as screen:
        screen.wait_for("e0.2")
        assert screen.lines()[-1].startswith(" q ends the mount ")
        mount = Mount(lab, INITIATOR, point, None, "")
        daemon = mount.pid
        screen.press("C-c")
        assert screen.exit_code() == 0
        assert not mount.mounted
        assert is_gone(daemon)
        assert packet_sockets(lab) == before


def test_open_files_are_served_after_leaving_until_a_second_ctrl_c(aoefs: Open, lab: Lab, point: Path) -> None:
    with aoefs("--console", "-i", "aoe0", point) as screen:
        screen.wait_for("e0.2")
        holder = lab.popen(INITIATOR, ["sh", "-c", f"exec 3< {point}/e0.1; echo open; exec sleep 1000"])
        wait_until(lambda: "open" in holder.output, what="the file is open")
        screen.press("q")
        screen.wait_for("Ctrl-C ends this at once")
        screen.press("C-c")
        assert screen.exit_code() == 0
        holder.stop()


def test_an_unmount_from_elsewhere_ends_the_console_with_the_code_of_the_mount(
    aoefs: Open, lab: Lab, point: Path
) -> None:
    with aoefs("--console", "-i", "aoe0", point) as screen:
        screen.wait_for("e0.2")
        lab.aoefs("umount", point)
        assert screen.exit_code() == 0
        assert "is not mounted any more" in "".join(screen.lines())


def test_the_log_is_among_the_events_and_not_on_the_screen(tmp_path: Path) -> None:
    with Lab() as lab:
        point = lab.directory / "mnt"
        point.mkdir()
        command = lab.command(INITIATOR, [AOEFS, "--console", "--deadsecs", "1", "-i", "aoe0", point])
        with terminal(tmp_path, command) as screen:
            screen.wait_for("q ends the mount")
            disk = lab.vblade(0, 0, lab.image("disk", MIB, seed=None))
            screen.wait_for("info    e0.0: 1.00 MiB, Coraid EtherDrive vblade")
            disk.stop()
            lab.run(INITIATOR, ["dd", f"if={point}/e0.0", "of=/dev/null", "count=1", "iflag=direct"], check=False)
            lines = screen.wait_for("error   e0.0: read failed")
            assert lines[0].startswith(" aoefs ")
            assert not [line for line in lines if line.startswith("aoefs: ")]
            screen.wait_until(lambda: any(line.startswith("e0.0     down") for line in screen.lines()), "it is down")
            screen.press("q")
            assert screen.exit_code() == 0


def test_a_suspended_console_stops_no_disk(lab: Lab, tmp_path: Path, point: Path) -> None:
    with terminal(tmp_path, lab.command(INITIATOR, ["bash", "--norc", "-i"])) as screen:
        screen.type(f"{AOEFS} --console -i aoe0 {point}")
        screen.wait_for("e0.2")
        screen.press("C-z")
        screen.wait_for("Stopped")
        lab.run(INITIATOR, ["dd", f"if={point}/e0.2", "of=/dev/null", "bs=1M", "iflag=direct", "status=none"])
        screen.type("fg")
        screen.wait_for("q ends the mount")
        screen.press("q")
        mount = Mount(lab, INITIATOR, point, None, "")
        wait_until(lambda: not mount.mounted, what="the mount ends")


def test_a_person_learns_that_a_mount_is_in_a_private_mount_namespace(lab: Lab, tmp_path: Path, point: Path) -> None:
    with terminal(tmp_path, lab.command(INITIATOR, [AOEFS, "-i", "aoe0", point]), (200, 10)) as screen:
        lines = screen.wait_for("visible in this mount namespace only")
        assert lines[0] == f"aoefs: mounted on {point}: 3 targets on aoe0; visible in this mount namespace only"
        assert screen.exit_code() == 0
    Mount(lab, INITIATOR, point, None, "").umount()


def test_a_console_without_a_terminal_is_refused(lab: Lab, point: Path) -> None:
    answer = lab.aoefs("--console", "-i", "aoe0", point, check=False)
    assert answer.returncode == 2
    assert answer.stderr == "aoefs: --console needs a terminal: -f logs to stderr instead\n"


# ── without a screen ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_single_status_in_a_terminal_fits_it(lab: Lab, tmp_path: Path, mount: Mount) -> None:
    command = lab.command(INITIATOR, ["sh", "-c", f"{AOEFS} status --once {mount.path}; echo code $?; read line"])
    with terminal(tmp_path, command, (80, 40)) as screen:
        lines = screen.wait_for("code 0")
        assert lines[1].split()[:5] == ["TARGET▲", "STATE", "SIZE", "READ", "WRITE"]
        assert [line.partition(" ")[0] for line in lines[2:5]] == ["e0.0", "e0.1", "e0.2"]
        assert not screen.is_full_screen()


def test_a_single_status_in_a_pipe_is_plain_tables(lab: Lab, mount: Mount) -> None:
    text = lab.aoefs("status", "--once", mount.path).stdout
    tables = [table.splitlines() for table in text.split("\n\n")]
    heads = [table[0].split()[0] for table in tables]
    assert [head for head in heads if head != "worker"][:4] == ["target", "path", "shard", "link"]  # with --workers
    assert [line.split()[0] for line in tables[0][1:]] == ["e0.0", "e0.1", "e0.2"]
    assert "\x1b" not in text


def test_watch_prints_a_line_of_json_each_time_until_the_mount_ends(lab: Lab) -> None:
    mount = lab.mount()
    watcher = lab.popen(INITIATOR, [AOEFS, "status", "--watch", "0.2", mount.path])
    wait_until(lambda: watcher.output.count("\n") >= 3, what="three lines")
    mount.umount()
    assert watcher.wait(30) == 1
    *lines, last = watcher.output.splitlines()
    assert {json.loads(line)["mountpoint"] for line in lines} == {str(mount.path)}
    assert last == f"aoefs: {mount.path} is not mounted any more"


def test_watch_ends_with_ctrl_c(lab: Lab, mount: Mount) -> None:
    watcher = lab.popen(INITIATOR, [AOEFS, "status", "--watch", "60", mount.path])
    wait_until(lambda: watcher.output.count("\n") == 1, what="the first line comes at once")
    assert watcher.stop(signal.SIGINT) == 130
