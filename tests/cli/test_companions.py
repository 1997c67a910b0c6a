"""The companions against vblade and ``aoefs target`` on a real wire: what they print, their codes, what they change."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest

from aoefs.cli.commands.path_test import PathResult, advice, largest
from aoefs.protocol.ata import decode_identify_untrusted
from tests.cli.inprocess import Result, Run, RunAt
from tests.lab import COMMANDS, INITIATOR, TARGET, Lab, wait_until
from tests.lab.forwarder import BLACK_HOLE, Misdeeds, Wire
from tests.segment import Faults

MIB = 1 << 20
OURS = "02:ae:00:00:01:00"
STRANGER = "02:00:00:00:00:09"
OWN, VBLADE = "e0.1", "e0.2"
both_targets = pytest.mark.parametrize("name", [OWN, VBLADE])


@pytest.fixture(scope="module")
def wired() -> Iterator[Lab]:
    """e0.1 is ours, e0.2 a vblade, e0.3 listens to strangers only, e0.4 are two disks on one wire, e0.5 evil words."""
    with Lab(mtu=9000) as lab:
        disk = lab.image("disk", MIB)
        lab.target(f"0.1={disk}")
        lab.target(f"0.3={lab.image('strangers', MIB)}", "--allow-mac", STRANGER)
        lab.target(f"0.5={lab.image('evil', MIB)}", "--config-string", "\x1b[2Jhi")
        lab.vblade(0, 2, disk)
        lab.vblade(0, 4, disk)
        lab.vblade(0, 4, lab.image("other", 2 * MIB))
        yield lab


@pytest.fixture
def run(wired: Lab, run_at: RunAt) -> Run:
    return run_at(wired)


def complaint(result: Result) -> str:
    """The one line of a command that failed."""
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("aoefs: ")
    return result.err


# ── no disk, or more than one ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", ["config", "identify", "reserve", "mask", "path-test"])
def test_no_answer_is_one_line(run: Run, command: str) -> None:
    line = complaint(run(command, "9.9", "-W", "0.05"))
    assert line.startswith("aoefs: e9.9 did not answer on aoe0 within 0.05 s: see 'aoefs discover'")


def test_who_is_not_on_the_allow_list_hears_nothing(run: Run) -> None:
    assert "did not answer" in complaint(run("identify", "0.3", "-W", "0.2"))
    ping = run("ping", "0.3", "-c", "1", "-W", "0.2")
    assert ping.code == 1
    assert ping.out.splitlines()[1:] == [
        "e0.3: seq=1 no answer within 0.2 s",
        "--- e0.3 ---",
        "1 sent, 0 answered, 100% lost",
    ]


@pytest.mark.parametrize("command", ["config", "identify", "reserve", "mask"])
def test_two_disks_with_one_address_are_named_and_refused(run: Run, command: str) -> None:
    line = complaint(run(command, "0.4"))
    assert re.match(r"aoefs: e0\.4 is 2 different disks \(serial 0\.4:\S+ at 02:ae:00:00:02:00 on aoe0, serial", line)


def test_one_disk_on_two_paths_is_one_disk(run_at: RunAt) -> None:
    with Lab(pairs=2) as lab:
        run = run_at(lab)
        lab.target(f"0.1={lab.image('disk', MIB)}", interfaces=("aoe0", "aoe1"))
        assert run("reserve", "0.1", "set").code == 0
        held = run("reserve", "0.1", "--json").out
        assert sorted(json.loads(held)["holders"]) == [OURS, "02:ae:00:00:01:01"]
        listed = run("path-test", "--json").out
        assert [(path["interface"], path["to_target"]) for path in json.loads(listed)] == [("aoe0", 2), ("aoe1", 2)]
        assert "4 sent, 4 answered, 0% lost" in run("ping", "0.1", "-c", "2", "--interval", "0.05").out


# ── config ────────────────────────────────────────────────────────────────────────────────────────────────────────


@both_targets
def test_the_config_string_is_set_once_tested_and_replaced_by_force(run: Run, name: str) -> None:
    assert run("config", name, "set", "--force", "") == Result(0, "", "")
    assert run("config", name) == Result(0, "\n", "")
    assert run("config", name, "set", "data base") == Result(0, "", "")
    assert run("config", name, "set", "data base").code == 0  # the same once more
    assert run("config", name, "get") == Result(0, "data base\n", "")
    assert json.loads(run("config", name, "--json").out) == {"name": name, "config": "data base"}
    line = complaint(run("config", name, "set", "mine"))
    assert line == f"aoefs: {name} has a config string already, 'data base': --force replaces it\n"
    assert run("config", name, "test", "data base").code == 0
    assert run("config", name, "prefix", "data").code == 0
    assert "is another one: 'data base'" in complaint(run("config", name, "test", "data"))
    assert "begins otherwise: 'data base'" in complaint(run("config", name, "prefix", "base"))
    assert run("config", "-i", "aoe0", name, "set", "--force", "mine").code == 0
    assert run("config", name).out == "mine\n"


def test_what_a_config_string_does_to_a_terminal_is_shown_and_not_done(run: Run) -> None:
    assert run("config", "0.5").out == "\\x1b[2Jhi\n"
    assert "'\\x1b[2Jhi'" in complaint(run("config", "0.5", "set", "x"))
    assert "'\\x1b[2Jhi'" in complaint(run("config", "0.5", "test", "x"))


# ── reserve ───────────────────────────────────────────────────────────────────────────────────────────────────────


@both_targets
def test_a_reservation_is_set_seen_kept_from_others_taken_over_and_released(run: Run, name: str) -> None:
    assert run("reserve", name) == Result(0, f"{name} is not reserved\n", "")
    assert run("reserve", name, "set") == Result(0, "", "")
    assert run("reserve", name, "get").out == f"{OURS}\n"
    assert run("ping", name, "--read", "-c", "1").code == 0
    assert run("reserve", name, "set", STRANGER).code == 0  # the holder may hand it on
    line = complaint(run("reserve", name, "set"))
    assert line == f"aoefs: {name} is reserved by others: 'aoefs reserve {name}' lists them, 'force' takes it over\n"
    assert "is reserved by others" in complaint(run("reserve", name, "release"))
    assert json.loads(run("reserve", name, "--json").out) == {"name": name, "holders": [STRANGER]}
    ping = run("ping", name, "--read", "-c", "1")
    assert ping.code == 1
    assert "seq=1 AoE error 6 (target is reserved)\n" in ping.out
    assert "1 sent, 0 answered, 1 refused, 0% lost" in ping.out
    path = json.loads(run("path-test", name, "--json").out)[0]
    assert (path["to_target"], path["from_target"]) == (17, None)
    assert run("identify", name).code == 0
    assert run("reserve", name, "force") == Result(0, "", "")
    assert run("reserve", name, "release") == Result(0, "", "")
    assert run("reserve", name).out == f"{name} is not reserved\n"


def test_a_reservation_and_a_mask_list_are_gone_with_the_target(lab: Lab, run_at: RunAt) -> None:
    run = run_at(lab)
    disk = lab.image("disk", MIB)
    target = lab.target(f"0.0={disk}")
    assert run("reserve", "0.0", "set").code == run("mask", "0.0", "add", OURS).code == 0
    target.stop()
    lab.target(f"0.0={disk}")
    assert run("reserve", "0.0").out == "e0.0 is not reserved\n"
    assert run("mask", "0.0").out == "e0.0 answers everybody\n"


# ── mask ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_mask_list_of_our_target_is_changed_and_read(run: Run) -> None:
    assert run("mask", OWN) == Result(0, f"{OWN} answers everybody\n", "")
    line = complaint(run("mask", OWN, "add", STRANGER))
    assert line == f"aoefs: {OWN} would not answer this host ({OURS}) any more: --force does it\n"
    assert run("mask", OWN, "add", OURS, STRANGER, "02-00-00-00-00-0a") == Result(0, "", "")
    assert run("mask", OWN).out == f"{OURS}\n{STRANGER}\n02:00:00:00:00:0a\n"
    assert "would not answer this host" in complaint(run("mask", OWN, "delete", OURS))
    assert run("mask", OWN, "delete", STRANGER).code == 0
    assert json.loads(run("mask", OWN, "--json").out) == {"name": OWN, "mask": [OURS, "02:00:00:00:00:0a"]}
    many = [f"02:00:00:00:01:{number:02x}" for number in range(63)]
    assert f"refuses {many[-1]}: its list is full" in complaint(run("mask", OWN, "add", *many))
    assert run("mask", OWN, "delete", *many, "02:00:00:00:00:0a").code == 0
    assert run("mask", OWN, "delete", OURS) == Result(0, "", "")
    assert run("mask", OWN).out == f"{OWN} answers everybody\n"


def test_the_mask_list_can_shut_us_out_by_force(lab: Lab, run_at: RunAt) -> None:
    run = run_at(lab)
    lab.target(f"0.0={lab.image('disk', MIB)}")
    run("mask", "0.0", "add", STRANGER, "--force")
    assert "did not answer" in run("mask", "0.0", "-W", "0.2").err


def test_a_vblade_is_never_sent_a_mask_delete(lab: Lab, run_at: RunAt) -> None:
    run = run_at(lab)
    vblade = lab.vblade(0, 0, lab.image("disk", MIB))
    capture = lab.capture()
    run("mask", "0.0", "add", OURS, STRANGER)
    assert run("mask", "0.0").out == f"{OURS}\n{STRANGER}\n"
    answer = run("mask", "0.0", "delete", STRANGER)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == (
        "aoefs: e0.0 is a vblade, which crashes on a mask delete (a bug of vblade): restart it with -m\n"
    )
    edits = [frame for frame in capture.frames() if frame[19] == 2 and frame[25] == 1 and not frame[14] & 8]
    assert [frame[29] for frame in edits] == [1]  # the one add
    answer = run("mask", "0.0", "add", "02:00:00:00:00:0a")
    assert "its list is now" in answer.err  # the third entry, which vblade mixes up, is not called done
    assert vblade.poll() is None


# ── identify ──────────────────────────────────────────────────────────────────────────────────────────────────────


@both_targets
def test_identify_tells_model_size_and_features(run: Run, name: str) -> None:
    text = run("identify", name).out
    lines = dict(re.split(r": +", line, maxsplit=1) for line in text.splitlines())
    assert lines["name"] == name
    assert lines["model"] == ("aoefs software target" if name == OWN else "Coraid EtherDrive vblade")
    assert lines["size"] == "1.00 MiB (2048 sectors of 512 bytes)"
    assert lines["flush"] == ("FLUSH EXT" if name == OWN else "FLUSH")
    report = json.loads(run("identify", name, "--json").out)
    assert (report["name"], report["size"], report["serial"]) == (name, MIB, lines["serial"])


def test_the_raw_data_are_the_512_bytes(wired: Lab) -> None:
    path = wired.directory / "raw"
    wired.run(INITIATOR, ["sh", "-c", f'"$0" identify {VBLADE} --raw > {path}', COMMANDS / "aoefs"])
    block = path.read_bytes()
    assert len(block) == 512
    assert decode_identify_untrusted(block).model == "Coraid EtherDrive vblade"


def test_raw_data_are_not_written_to_a_terminal() -> None:
    terminal, other_end = pty.openpty()
    command = subprocess.Popen([COMMANDS / "aoefs", "identify", "0.0", "--raw"], stdout=other_end, stderr=other_end)
    os.close(other_end)
    said = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while piece := os.read(terminal, 4096):
            said += piece
    os.close(terminal)
    assert command.wait(60) == 2
    assert said.startswith(b"aoefs: --raw writes 512 bytes that are no text")


def test_smart_of_our_target_is_decoded_and_vblade_has_none(run: Run) -> None:
    run("ping", OWN, "--read", "-c", "1")
    lines = run("identify", OWN, "--smart").out.splitlines()
    assert lines[0] == f"{OWN}: SMART finds it well"
    assert lines[1].split() == ["id", "attribute", "value", "worst", "raw"]
    assert re.fullmatch(r"187 +reported uncorrectable +100 +100 +0", lines[2])
    report = json.loads(run("identify", OWN, "--smart", "--json").out)
    assert report["failing"] is False
    raw = {attribute["id"]: attribute["raw"] for attribute in report["attributes"]}
    assert raw[242] > 0
    assert complaint(run("identify", VBLADE, "--smart")) == (
        f"aoefs: {VBLADE} has no SMART, as its IDENTIFY data say\n"
    )


# ── ping ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@both_targets
@pytest.mark.parametrize("options", [(), ("--read",)])
def test_ping_prints_each_answer_and_a_summary(run: Run, name: str, options: tuple[str, ...]) -> None:
    answer = run("ping", name, "-c", "3", "--interval", "0", *options)
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[0] == f"PING {name} on aoe0: {'reads of a sector' if options else 'config queries'}"
    for number, line in enumerate(lines[1:4], 1):
        assert re.fullmatch(rf"{name} from 02:ae:00:00:02:00 on aoe0: seq={number} time=\d+\.\d{{3}} ms", line)
    assert lines[4:6] == [f"--- {name} ---", "3 sent, 3 answered, 0% lost"]
    assert re.fullmatch(r"min/avg/max/stddev = \d+\.\d{3}/\d+\.\d{3}/\d+\.\d{3}/\d+\.\d{3} ms", lines[6])


def test_two_answers_to_one_probe_are_counted(run: Run) -> None:
    answer = run("ping", "0.4", "-c", "2", "--interval", "0")
    assert answer.out.count(" (DUP!)\n") == 2
    assert "2 sent, 2 answered, 2 duplicate, 0% lost" in answer.out


@pytest.mark.parametrize(("name", "code"), [(OWN, 0), ("9.9", 1)])
def test_ctrl_c_ends_a_ping_with_its_summary(wired: Lab, name: str, code: int) -> None:
    process = wired.popen(INITIATOR, [COMMANDS / "aoefs", "ping", name, "--interval", "0.01", "-W", "0.1"])
    wait_until(lambda: process.output.count("\n") >= (4 if code == 0 else 1), what="answers")
    assert process.stop(signal.SIGINT) == code
    assert re.search(r"\d+ sent, \d+ answered", process.output)
    assert "Traceback" not in process.output


def test_a_reader_that_goes_away_ends_a_ping(wired: Lab) -> None:
    line = f'"$0" ping {OWN} --interval 0.01 | head -1; exit ${{PIPESTATUS[0]}}'
    answer = wired.run(INITIATOR, ["bash", "-c", line, COMMANDS / "aoefs"], check=False)
    assert (answer.returncode, answer.stderr) == (141, "")


@pytest.fixture
def faulty() -> Iterator[tuple[Lab, Wire]]:
    """A vblade behind a faulty wire of MTU 9000."""
    with Lab(mtu=9000, pairs=0) as lab, contextlib.closing(Wire(lab, INITIATOR, TARGET)) as wire:
        lab.vblade(0, 0, lab.image("disk", MIB))
        yield lab, wire


def test_ping_measures_the_delay_and_the_loss_of_the_wire(faulty: tuple[Lab, Wire], run_at: RunAt) -> None:
    lab, wire = faulty
    run = run_at(lab)
    wire.faults(reorder=1.0, reorder_by=0.05)
    answer = run("ping", "0.0", "-c", "2", "--interval", "0", "-W", "20")
    least, *_ = re.findall(r"= ([\d.]+)/", answer.out)
    assert float(least) >= 100.0  # both ways
    wire.faults(duplicate=1.0)
    assert "(DUP!)" in run("ping", "0.0", "-c", "1", "-W", "20").out
    wire.misbehave(out=Misdeeds(lost_opcodes=(0x20,)))
    assert "1 sent, 1 answered" in run("ping", "0.0", "-c", "1", "-W", "20").out
    answer = run("ping", "0.0", "-c", "2", "--read", "--interval", "0", "-W", "0.1")
    assert (answer.code, answer.out.splitlines()[-1]) == (1, "2 sent, 0 answered, 100% lost")
    wire.misbehave(back=BLACK_HOLE, out=Misdeeds())
    answer = run("ping", "0.0", "-c", "2", "--interval", "0.05", "-W", "0.1")
    assert (answer.code, answer.out.splitlines()[-1]) == (1, "2 sent, 0 answered, 100% lost")


def test_a_target_that_comes_back_with_another_mac_is_heard_again(lab: Lab) -> None:
    disk = lab.image("disk", MIB)
    first = lab.vblade(0, 0, disk)
    process = lab.popen(INITIATOR, [COMMANDS / "aoefs", "ping", "0.0", "--interval", "0.02", "-W", "0.1"])
    wait_until(lambda: "seq=3" in process.output, what="answers")
    first.stop()
    lab.ip(TARGET, "link", "set", "aoe0", "down")
    lab.ip(TARGET, "link", "set", "aoe0", "address", "02:00:00:00:77:77", "up")
    lab.vblade(0, 0, disk)
    wait_until(lambda: "e0.0 from 02:00:00:00:77:77" in process.output, what="answers of the new MAC")
    assert process.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("command", ["config", "path-test"])
def test_ctrl_c_ends_any_other_companion_quietly(wired: Lab, command: str) -> None:
    process = wired.popen(INITIATOR, [COMMANDS / "aoefs", command, "9.9", "-W", "60"])
    wait_until(lambda: wired.sides[INITIATOR].packet_sockets(), what="it asks")
    assert process.stop(signal.SIGINT) == 130
    assert process.output == ""


# ── path-test ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_path_test_lists_all_targets_with_what_passes(run: Run) -> None:
    answer = run("path-test")
    assert answer.code == 0
    rows = [re.split(r" {2,}", line) for line in answer.out.splitlines()]
    assert rows[0] == ["name", "interface", "mac", "mtu", "limit", "to target", "from target"]
    assert {row[0] for row in rows[1:]} == {OWN, VBLADE, "e0.4", "e0.5"}
    assert {tuple(row[1:]) for row in rows[1:]} == {("aoe0", "02:ae:00:00:02:00", "9000", "8704", "8704", "8704")}


def test_path_test_finds_what_passes_in_each_direction(faulty: tuple[Lab, Wire], run_at: RunAt) -> None:
    lab, wire = faulty
    run = run_at(lab)
    lab.ip(INITIATOR, "link", "set", "aoe0", "mtu", "2100")  # four sectors: few steps
    for direction, sizes in (("out", (2, 4)), ("back", (4, 2))):
        wire.misbehave(**{"out": Misdeeds(), "back": Misdeeds(), direction: Misdeeds(Faults(longest=1100))})
        answer = run("path-test", "0.0", "--json")
        assert answer.code == 1
        (path,) = json.loads(answer.out)
        assert (path["to_target"], path["from_target"]) == sizes
        word = "to" if direction == "out" else "from"
        assert path["advice"] == [
            f"frames {word} the target are lost above 1024 bytes of data; both ends can 2048: "
            "raise the MTU of every switch between to 2084 or more",
            "the target takes 8704 bytes a frame: 'ip link set aoe0 mtu 9000', if the switches carry that",
        ]


def test_path_test_advises_on_an_mtu_that_is_smaller_at_one_end(lab: Lab, run_at: RunAt) -> None:
    run = run_at(lab)
    lab.ip(TARGET, "link", "set", "aoe0", "mtu", "9000")
    lab.target(f"0.0={lab.image('disk', MIB)}")
    answer = run("path-test")
    assert "e0.0 on aoe0: the target takes 8704 bytes a frame: 'ip link set aoe0 mtu 9000'" in answer.out


def test_path_test_without_any_target_says_so(lab: Lab, run_at: RunAt) -> None:
    run = run_at(lab)
    answer = run("path-test", "-W", "0.1")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == "aoefs: no target answered on aoe0 within 0.1 s\n"


@pytest.mark.parametrize("truth", range(18))
async def test_the_largest_size_that_passes_is_found_in_few_steps(truth: int) -> None:
    asked = []

    async def passes(size: int) -> bool:
        asked.append(size)
        return size <= truth

    assert await largest(passes, 17) == truth
    assert len(asked) == len(set(asked)) <= (1 if truth == 17 else 2 if truth == 0 else 6)


def path(**changes: int | str | None) -> PathResult:
    fields: dict[str, int | str | None] = {
        "name": "e0.0",
        "interface": "eth1",
        "mac": "02:00:00:00:00:01",
        "mtu": 9000,
        "local_sectors": 17,
        "target_sectors": 17,
        "to_target": 17,
        "from_target": 17,
    }
    return PathResult(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (path(), []),
        (
            path(to_target=0, from_target=0),
            ["nothing with data in it passes to", "nothing with data in it passes from"],
        ),
        (path(to_target=2), ["lost above 1024 bytes of data; both ends can 8704"]),
        (path(from_target=None), ["refuses READs"]),
        (path(local_sectors=2, mtu=1500, to_target=2, from_target=2), ["ip link set eth1 mtu 9000"]),
        (path(local_sectors=2, mtu=1500, target_sectors=4, to_target=2, from_target=2), ["ip link set eth1 mtu 2084"]),
        (path(target_sectors=2, to_target=2, from_target=2), ["takes 1024 bytes a frame only: raise its MTU"]),
    ],
)
def test_advice_fits_what_was_measured(result: PathResult, says: list[str]) -> None:
    told = advice([result])[result]
    assert len(told) == len(says)
    for line, words in zip(told, says, strict=True):
        assert words in line


def test_a_path_that_carries_less_than_another_is_named() -> None:
    narrow = path(interface="eth2", mtu=1500, local_sectors=2, target_sectors=2, to_target=2, from_target=2)
    told = advice([path(), narrow])
    assert told[path()] == []
    assert told[narrow] == ["another path of e0.0 carries 8704 bytes a frame"]
