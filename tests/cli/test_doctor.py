"""``aoefs doctor``: what it finds on hosts in good and in bad health, and what it advises."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from aoefs import is_compiled
from aoefs.cli.commands import doctor
from tests.cli.commandline import aoefs_in_time
from tests.cli.inprocess import Result, RunAt
from tests.host.livemount import standin
from tests.lab import COMMANDS, INITIATOR, TARGET, Lab, require, wait_until


def findings(result: Result) -> dict[str, tuple[str, str, str]]:
    return {each["check"]: (each["state"], each["text"], each["mend"]) for each in json.loads(result.out)}


@pytest.mark.parametrize("lab", [9000], indirect=True)
def test_a_healthy_host_gets_a_line_for_everything(lab: Lab, run_at: RunAt) -> None:
    require("/dev/fuse", "fusermount3")
    run = run_at(lab)
    answer = run("doctor")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert all(re.match(r"(ok  |warn) +\S", line) for line in lines)
    assert "ok    interface aoe0: up, MTU 9000: 8704 bytes of data in a frame" in lines
    found = findings(run("doctor", "--json"))
    checks = "python|package (pyfuse3|rich|trio)|fuse|fusermount3|user_allow_other|raw Ethernet|CAP_NET_ADMIN"
    assert len([check for check in found if re.fullmatch(checks, check)]) == 9
    assert {"kernel driver", "CAP_SYS_RESOURCE", "system log"} <= set(found)
    state, text, _ = found["hot path"]
    assert (state, text.split(",")[0]) == (("ok", "compiled") if is_compiled() else ("warn", "pure Python"))


def test_without_rights_and_without_fuse_the_doctor_says_how_to_get_them(lab: Lab) -> None:
    require("setpriv")
    drop = ["setpriv", "--bounding-set", "-net_raw,-net_admin", "--inh-caps", "-net_raw,-net_admin", "--"]
    hide = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs /dev && exec "$@"', "sh"]
    answer = lab.run(INITIATOR, [*hide, *drop, COMMANDS / "aoefs", "doctor"], check=False)
    assert (answer.returncode, answer.stderr) == (1, "")
    assert "\nfail  fuse: /dev/fuse is missing: 'modprobe fuse'" in answer.stdout
    assert "\nfail  raw Ethernet: no permission for raw Ethernet: run as root, or with" in answer.stdout
    assert "\nwarn  CAP_NET_ADMIN: missing, so socket buffers are bounded by the system's limits: " in answer.stdout


def test_interfaces_that_cannot_be_used_are_named_with_what_to_do(lab: Lab, run_at: RunAt) -> None:
    run = run_at(lab)
    lab.cable(INITIATOR, TARGET)
    lab.ip(TARGET, "link", "set", "aoe1", "down")
    lab.ip(INITIATOR, "link", "set", "aoe0", "mtu", "500")
    answer = run("doctor")
    assert "warn  interface aoe0: MTU 500 is too small for one sector: 'ip link set aoe0 mtu 1500'" in answer.out
    assert answer.code == 0
    wait_until(lambda: "warn  interface aoe1: no carrier" in run("doctor").out, what="the kernel saw the carrier go")
    lab.ip(INITIATOR, "link", "set", "aoe1", "down")
    answer = run("doctor")
    assert answer.code == 1
    assert "\nfail  interfaces: no Ethernet interface can be used" in answer.out
    answer = run("doctor", "-i", "aoe0", "-i", "aoe7")
    assert answer.code == 1
    assert "\nfail  interface aoe0: MTU 500 is too small" in answer.out
    assert "\nfail  interface aoe7: does not exist" in answer.out


def test_the_kernel_driver_and_small_buffers_are_warned_of(
    lab: Lab, run_at: RunAt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "module/aoe").mkdir(parents=True)
    (tmp_path / "block/etherd!e7.1").mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("Name:\taoefs\nCapEff:\t0000000000002000\n")
    (tmp_path / "sys/net/core").mkdir(parents=True)
    (tmp_path / "sys/net/core/rmem_max").write_text("212992\n")
    (tmp_path / "sys/net/core/wmem_max").write_text("9999999\n")
    monkeypatch.setattr(doctor, "SYS", tmp_path)
    monkeypatch.setattr(doctor, "PROC", tmp_path)
    found = findings(run_at(lab)("doctor", "--json"))
    state, text, mend = found["kernel driver"]
    assert (state, text) == ("warn", "the module aoe is loaded and shows etherd/e7.1")
    assert "modprobe -r aoe" in mend
    assert found["net.core.rmem_max"][0] == "warn"
    assert found["net.core.rmem_max"][2].startswith("'sysctl -w net.core.rmem_max=16777216'")
    assert found["net.core.wmem_max"] == ("ok", "9999999", "")
    assert found["CAP_SYS_RESOURCE"][0] == "warn"


def test_a_request_timeout_of_the_kernel_is_warned_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("aoefs.fuse.tuning.SYSCTLS", tmp_path)

    def found() -> doctor.Finding:
        return next(finding for finding in doctor.examine() if finding.check == "request timeout")

    assert found().state == "ok"
    (tmp_path / "default_request_timeout").write_text("0\n")
    (tmp_path / "max_request_timeout").write_text("60\n")
    assert found().state == "warn"
    assert found().text == "requests that take longer than 60 s abort the whole mount"
    assert found().advice.startswith("keep --deadsecs below")
    assert "fs.fuse.max_request_timeout" in found().advice


def test_a_package_that_does_not_load_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        raise ImportError("libfuse3.so.3: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", broken)
    states = {finding.check: finding.state for finding in doctor.examine()}
    assert [states[f"package {name}"] for name in ("pyfuse3", "rich", "trio")] == ["fail"] * 3


def test_mounts_are_listed_and_a_dead_one_is_warned_of(tmp_path: Path) -> None:
    with standin(tmp_path / "mnt") as process:

        def state() -> str:
            found = {finding.check: finding.state for finding in doctor.examine()}
            return found[f"mount {tmp_path / 'mnt'}"]

        assert state() == "ok"
        process.kill()
        process.wait()
        assert state() == "warn"


def test_several_mounts_that_do_not_answer_take_no_longer_than_one(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("stopped", "deaf", "also deaf")]
    with standin(paths[0]) as process, standin(paths[1], "deaf"), standin(paths[2], "deaf"):
        process.send_signal(signal.SIGSTOP)
        lines = aoefs_in_time("doctor").stdout.splitlines()
    for path in paths:
        [line] = [line for line in lines if f" mount {path}: " in line]
        assert line.startswith("warn  ")
        assert "does not answer" in line
