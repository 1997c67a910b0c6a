"""What the processes of one mount say of themselves, as one: their status files and their events.

Pure: objects and lines in, objects and lines out.  The report of the main process comes first; those of workers (which
serve a share of the targets each, ``fuse.workers``) are added to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from aoefs.core.latency import BUCKETS
from aoefs.core.link import LinkStatistics
from aoefs.core.statistics import PathStatistics, TargetStatistics
from aoefs.engine.engine import EngineStatistics
from aoefs.engine.shards import ShardStatistics
from aoefs.protocol.ata import Identity
from aoefs.protocol.wire import SECTOR_BYTES, Address, parse_mac
from aoefs.status.report import STATUS_EVENTS

T = TypeVar("T")

_SUMS = ("hints", "hints_dropped", "candidates_dropped", "refused_identities", "cpu_seconds")
_LINK_SUMS = ("rx_frames", "rx_dropped", "rx_unknown", "tx_frames", "tx_full")


def merged_status(
    main: dict[str, Any], workers: Mapping[int, Mapping[str, Any]], restarts: Mapping[int, int], processes: int
) -> None:
    """Add the reports of workers, by number, to that of the main process; there are ``processes`` at most.

    The number of a shard is the same whichever of them run.

    ``restarts`` says how often each one was started again, also those without a report.
    """
    reports: dict[int, Mapping[str, Any]] = {0: dict(main), **workers}
    main["workers"] = [
        {
            "id": number,
            "pid": reports.get(number, {}).get("pid"),
            "targets": [target["name"] for target in reports.get(number, {"targets": []})["targets"]],
            "cpu_seconds": reports.get(number, {}).get("cpu_seconds", 0.0),
            "restarts": count,
        }
        for number, count in sorted({0: 0, **restarts}.items())
    ]
    main["shards"] = [
        {**shard, "id": shard["id"] * processes + number, "worker": number}
        for number, report in sorted(reports.items())
        for shard in report["shards"]
    ]
    for _, report in sorted(workers.items()):
        main["targets"] = [*main["targets"], *report["targets"]]
        main["strangers"] = [*main["strangers"], *report["strangers"]]
        main["events"] = [*main["events"], *report["events"]]
        for name in _SUMS:
            main[name] += report[name]
        main["stopped_seconds"] = max(main["stopped_seconds"], report["stopped_seconds"])
        counted = {link["interface"]: link for link in report["links"]}
        main["links"] = [
            {**link, **{name: link[name] + counted[link["interface"]][name] for name in _LINK_SUMS}}
            if link["interface"] in counted
            else link
            for link in main["links"]
        ]
    main["targets"].sort(key=lambda target: (target["shelf"], target["slot"]))
    main["events"] = sorted(main["events"], key=lambda event: event["time"])[-STATUS_EVENTS:]


def statistics_of(status: Mapping[str, Any]) -> EngineStatistics:
    """The snapshot that a status was made of, as far as it has it."""
    return EngineStatistics(
        targets=tuple(map(_target, status["targets"])),
        shards=tuple(_record(ShardStatistics, shard) for shard in status["shards"]),
        links=tuple(_record(LinkStatistics, link) for link in status["links"]),
        strangers=(),
        **{name: status[name] for name in (*_SUMS[:-1], "stopped_seconds")},
    )


def _record(kind: type[T], report: Mapping[str, Any], **more: object) -> T:
    """A record of its own fields in a report."""
    given = {name: report[name] for name in kind.__dataclass_fields__ if name in report}  # type: ignore[attr-defined]
    return kind(**{**given, **({"mac": parse_mac(report["mac"])} if "mac" in report else {}), **more})


def _target(report: Mapping[str, Any]) -> TargetStatistics:
    latencies = {
        f"{kind}_latency": tuple(counts + [0] * (BUCKETS - len(counts)))
        for kind in ("read", "write")
        if (counts := report[f"{kind}_latency_us"]["histogram"]) is not None
    }
    return _record(
        TargetStatistics,
        report,
        address=Address(report["shelf"], report["slot"]),
        identity=Identity(report["size"] // SECTOR_BYTES, report["serial"], report["model"], report["firmware"]),
        config=report["config"].encode(),
        bufcnt=max((path["bufcnt"] for path in report["paths"]), default=0),
        waiting=0,
        quarantined=0,
        paths=tuple(_record(PathStatistics, path) for path in report["paths"]),
        **latencies,
    )


def merged_events(files: Sequence[bytes]) -> bytes:
    """The lines of several files of events, in order of time."""
    lines = [line for text in files for line in text.decode().splitlines(keepends=True)]
    return "".join(sorted(lines, key=lambda line: datetime.fromisoformat(line.split(" ", 1)[0]))).encode()
