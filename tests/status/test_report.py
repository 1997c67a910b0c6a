"""The JSON of a snapshot: its fields are promised to programs."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from aoefs.core.latency import lower_bound_us
from aoefs.engine.engine import EngineStatistics
from aoefs.protocol.wire import Address
from aoefs.status.events import Event
from aoefs.status.report import STATUS_EVENTS, StatusText, status_report, stranger_report, target_report
from tests.status.snapshots import engine_statistics, histogram, stranger, target

TARGET_FIELDS = """name shelf slot size model serial firmware config state conflict paths reads writes read_bytes
    write_bytes flushes errors busy_seconds retransmits in_flight queued rtt_us read_latency_us write_latency_us dirty
    flush_supported""".split()  # noqa: SIM905
PATH_FIELDS = """interface mac sectors in_flight window rtt_us rttvar_us rto_us sent answered retransmits late
    reductions healthy bufcnt""".split()  # noqa: SIM905


def test_a_target_has_the_promised_fields_and_is_named_as_its_file() -> None:
    report = target_report(target())
    assert list(report) == TARGET_FIELDS
    assert (report["name"], report["shelf"], report["slot"], report["size"]) == ("e7.1", 7, 1, 1 << 20)
    assert (report["reads"], report["write_bytes"], report["dirty"]) == (3, 512, True)
    assert json.loads(json.dumps(report)) == report


def test_a_path_has_the_promised_fields_and_its_mac_as_text() -> None:
    first, second = target_report(target())["paths"]
    assert sorted(first) == sorted(PATH_FIELDS)
    assert (first["interface"], first["mac"], first["bufcnt"]) == ("eth0", "02:ae:00:00:02:00", 16)
    assert (first["healthy"], second["healthy"]) == (True, False)


def test_a_config_string_of_any_bytes_is_text() -> None:
    assert target_report(target())["config"] == "any \\xff"


def test_latencies_are_percentiles_and_the_histogram_up_to_its_last_bucket() -> None:
    report = target_report(target(read_latency=histogram(100, 100, 3000), write_latency=histogram()))
    latency = report["read_latency_us"]
    assert latency["p50"] == pytest.approx(100, rel=0.25)
    assert latency["p99"] == pytest.approx(3000, rel=0.25)
    assert sum(latency["histogram"]) == 3
    assert latency["histogram"][-1] == 1
    assert lower_bound_us(len(latency["histogram"]) - 1) <= 3000 < lower_bound_us(len(latency["histogram"]))
    assert report["write_latency_us"]["histogram"] == []


def test_a_stranger_has_the_fields_that_discover_shows_and_a_reason() -> None:
    report = stranger_report(stranger(Address(9, 9), "eth0"))
    known = {"name": "e9.9", "shelf": 9, "slot": 9, "size": None, "config": "who", "state": "no answer"}
    assert report.items() >= {**known, "reason": "it does not answer IDENTIFY"}.items()
    assert report["paths"] == [{"interface": "eth0", "mac": "02:ae:00:00:02:00", "bufcnt": 4, "sectors": 2}]
    assert set(report) - {"reason"} <= set(TARGET_FIELDS)


def test_the_status_is_everything_of_the_engine_and_says_which_mount_it_is() -> None:
    status = status_report(engine_statistics(), mountpoint="/mnt", pid=4711, version="1.0")
    assert list(status) == [
        "mountpoint",
        "pid",
        "version",
        "targets",
        "shards",
        "links",
        "strangers",
        "hints",
        "hints_dropped",
        "candidates_dropped",
        "refused_identities",
        "stopped_seconds",
        "events",
    ]
    assert (status["mountpoint"], status["pid"], status["version"]) == ("/mnt", 4711, "1.0")
    assert json.loads(json.dumps(status)) == status


def test_the_status_has_the_last_events_only() -> None:
    events = [Event(float(number), "info", f"event {number}") for number in range(STATUS_EVENTS + 10)]
    status = status_report(engine_statistics(), events, mountpoint="/mnt", pid=1, version="1")
    shown = status["events"]
    assert isinstance(shown, list)
    assert len(shown) == STATUS_EVENTS
    assert shown[-1] == {"time": STATUS_EVENTS + 9.0, "level": "info", "text": f"event {STATUS_EVENTS + 9}"}


@pytest.mark.parametrize("mountpoint", ["/mnt", '"targets": []'])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_text_of_the_status_is_the_status(mountpoint: str, count: int) -> None:
    names: dict[str, Any] = {"mountpoint": mountpoint, "pid": 4711, "version": "1.0"}
    snapshot = replace(engine_statistics(), targets=tuple(target(name=f"e7.{slot}") for slot in range(count)))
    events = [Event(1.0, "info", '"targets": []')]
    text = StatusText(lambda: snapshot, lambda: events, lambda: 0.0, **names)
    for reads in (5, 6):
        snapshot = replace(snapshot, targets=tuple(replace(one, reads=reads) for one in snapshot.targets))
        made = text.read()
        read = json.loads(made)
        assert abs(read.pop("time") - time.time()) < 60
        assert 0 <= read.pop("uptime_seconds") < 60
        assert read.pop("cpu_seconds") > 0
        assert read == status_report(snapshot, events, **names)
        assert made.count(b"\n") == 1


def test_a_program_that_reads_the_status_in_a_loop_costs_a_twentieth_of_the_time() -> None:
    now, snapshots = 0.0, 0

    def statistics() -> EngineStatistics:
        nonlocal now, snapshots
        now += 0.05  # as of a thousand targets
        snapshots += 1
        return engine_statistics()

    text = StatusText(statistics, list, lambda: now, mountpoint="/mnt", pid=1, version="1")
    while now < 20:
        assert json.loads(text.read())["pid"] == 1
        now += 0.001
    assert 15 <= snapshots <= 22
