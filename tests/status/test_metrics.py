"""The metrics of a snapshot; a scrape of a real mount is in tests/mount/test_service.py."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.lowlevel
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from aoefs.errors import UserError
from aoefs.status.metrics import families, serve
from tests.status.snapshots import engine_statistics

PATH = {"target": "e7.1", "interface": "eth0", "mac": "02:ae:00:00:02:00"}


class Made(Collector):
    def collect(self) -> list[Metric]:
        return list(families(engine_statistics()))


@pytest.fixture(scope="module")
def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    made.register(Made())
    return made


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("target_up", {"target": "e7.1"}, 1),
        ("target_size_bytes", {"target": "e7.1"}, 1 << 20),
        ("target_dirty", {"target": "e7.1"}, 1),
        ("target_rtt_seconds", {"target": "e7.1"}, 0.00025),
        ("target_errors_total", {"target": "e7.1"}, 6),
        ("target_requests_total", {"target": "e7.1", "operation": "read"}, 3),
        ("target_bytes_total", {"target": "e7.1", "operation": "write"}, 512),
        ("path_healthy", PATH, 1),
        ("path_healthy", {**PATH, "interface": "eth1"}, 0),
        ("path_retransmits_total", PATH, 4),
        ("path_late_total", PATH, 3),
        ("shard_completed_total", {"shard": "0"}, 99),
        ("link_mtu_bytes", {"interface": "eth0"}, 9000),
        ("link_dropped_frames_total", {"interface": "eth0"}, 2),
        ("hints_total", {}, 11),
        ("refused_identities_total", {}, 14),
    ],
)
def test_a_counter_of_the_engine_is_a_sample(
    registry: CollectorRegistry, name: str, labels: dict[str, str], value: float
) -> None:
    assert registry.get_sample_value(f"aoefs_{name}", labels) == value


def test_a_latency_is_a_histogram_of_seconds_with_a_bucket_per_octave(registry: CollectorRegistry) -> None:
    def below(seconds: str) -> float | None:
        labels = {"target": "e7.1", "operation": "read", "le": seconds}
        return registry.get_sample_value("aoefs_target_latency_seconds_bucket", labels)

    assert (below("6.4e-05"), below("0.000128"), below("33.554432"), below("67.108864")) == (0, 2, 2, 3)
    assert below("+Inf") == 3
    assert below("9.6e-05") is None


def test_text_of_a_target_is_printable_in_its_labels(registry: CollectorRegistry) -> None:
    labels = {"target": "e7.1", "model": "a\\x1b[2Jmodel", "serial": "S1", "firmware": "1.0"}
    assert registry.get_sample_value("aoefs_target_info", labels) == 1
    assert b"\x1b" not in generate_latest(registry)


async def test_an_address_that_is_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(UserError, match=rf"^metrics at 127\.0\.0\.1 port {port}: Address already in use$"),
            serve("127.0.0.1", port, engine_statistics, version="1"),
        ):
            await trio.lowlevel.checkpoint()
