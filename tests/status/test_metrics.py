"""The metrics: their text, and who gets it when; a scrape of a real mount is in tests/mount/test_service.py."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from aoefs.engine.engine import EngineStatistics
from aoefs.errors import UserError
from aoefs.protocol.wire import Address
from aoefs.status import metrics
from aoefs.status.metrics import Exposition, Server, listen
from tests.status.snapshots import engine_statistics, target

PATH = {"target": "e7.1", "interface": "eth0", "mac": "02:ae:00:00:02:00"}


class Samples:
    """The samples of a text, as Prometheus understands it."""

    def __init__(self, text: bytes) -> None:
        self.kinds = {family.name: family.type for family in text_string_to_metric_families(text.decode())}
        self._values = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
        }

    def get(self, name: str, labels: dict[str, str]) -> float | None:
        return self._values.get((name, *sorted(labels.items())))


@pytest.fixture
async def samples() -> Samples:
    return Samples(await Exposition("1").text(engine_statistics()))


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
async def test_a_counter_of_the_engine_is_a_sample(
    samples: Samples, name: str, labels: dict[str, str], value: float
) -> None:
    assert samples.get(f"aoefs_{name}", labels) == value


async def test_a_latency_is_a_histogram_of_seconds_with_a_bucket_per_octave(samples: Samples) -> None:
    def below(seconds: str) -> float | None:
        labels = {"target": "e7.1", "operation": "read", "le": seconds}
        return samples.get("aoefs_target_latency_seconds_bucket", labels)

    assert (below("6.4e-05"), below("0.000128"), below("33.554432"), below("67.108864")) == (0, 2, 2, 3)
    assert below("+Inf") == 3
    assert below("9.6e-05") is None


async def test_text_of_a_target_is_printable_in_its_labels(samples: Samples) -> None:
    hostile = replace(target(), identity=replace(target().identity, model='a\x1b[2J"\\\n'))
    text = await Exposition("1").text(replace(engine_statistics(), targets=(hostile,)))
    assert b"\x1b" not in text
    labels = {"target": "e7.1", "model": 'a\\x1b[2J"\\\\x0a', "serial": "S1", "firmware": "1.0"}
    assert Samples(text).get("aoefs_target_info", labels) == 1
    labels = {"target": "e7.1", "model": "a\\x1b[2Jmodel", "serial": "S1", "firmware": "1.0"}
    assert samples.get("aoefs_target_info", labels) == 1


async def test_a_family_is_described_once_whatever_the_number_of_targets(samples: Samples) -> None:
    many = tuple(target(name=f"e7.{slot}", address=Address(7, slot), reads=slot) for slot in range(100))
    exposition = Exposition("1")
    text = await exposition.text(replace(engine_statistics(), targets=many))
    found = Samples(text)
    assert found.kinds == samples.kinds
    assert {"gauge", "counter", "histogram"} == set(found.kinds.values())
    lines = text.decode().splitlines()
    assert len([line for line in lines if line.startswith("# TYPE")]) == len(found.kinds)
    for slot in range(100):
        labels = {"target": f"e7.{slot}", "operation": "read"}
        assert found.get("aoefs_target_requests_total", labels) == slot
    fewer = Samples(await exposition.text(replace(engine_statistics(), targets=(*many[:5], target()))))
    assert fewer.get("aoefs_target_up", {"target": "e7.6"}) is None
    assert fewer.get("aoefs_target_requests_total", {"target": "e7.4", "operation": "read"}) == 4
    assert fewer.get("aoefs_target_requests_total", {"target": "e7.1", "operation": "read"}) == 3


async def test_the_process_and_the_program_are_there(samples: Samples) -> None:
    assert samples.get("aoefs_info", {"version": "1"}) == 1
    assert samples.get("process_cpu_seconds_total", {}) is not None
    assert samples.get("process_open_fds", {}) is not None


# ── the server ────────────────────────────────────────────────────────────────────────────────────────────────────

GET = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"


class Scene:
    """A server on a loopback port, on a clock that moves when the test says so."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.snapshots = 0

    def statistics(self) -> EngineStatistics:
        self.snapshots += 1
        return replace(engine_statistics(), hints=self.snapshots)

    async def connect(self, request: bytes = b"") -> trio.SocketStream:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port, happy_eyeballs_delay=float("inf"))
        await stream.send_all(request)
        return stream


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Scene]:
    listeners = await listen("127.0.0.1", 0)
    scene = Scene(listeners[0].socket.getsockname()[1])
    server = Server(listeners, scene.statistics, version="1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        yield scene
        nursery.cancel_scope.cancel()


async def all_of(stream: trio.SocketStream) -> bytes:
    """What comes until the server closes the connection."""
    async with stream:
        return b"".join([piece async for piece in stream])


async def ask(scene: Scene, request: bytes = GET) -> bytes:
    return await all_of(await scene.connect(request))


def hints(answer: bytes) -> float | None:
    head, _, text = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(text)}".encode() in head
    return Samples(text).get("aoefs_hints_total", {})


async def test_all_scrapes_of_a_second_get_one_snapshot(autojump_clock: MockClock) -> None:
    async with serving() as scene:
        assert [hints(await ask(scene)) for _ in range(4)] == [1] * 4
        await trio.sleep(1)
        assert hints(await ask(scene)) == scene.snapshots == 2
        await trio.sleep(100)
        assert scene.snapshots == 2


async def test_scrapers_in_a_loop_are_all_served_and_get_few_answers(autojump_clock: MockClock) -> None:
    counts = [0] * 12  # more than there are places

    async def loop(number: int) -> None:
        while True:
            assert hints(await ask(scene)) is not None
            counts[number] += 1

    async with serving() as scene:
        with trio.move_on_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(len(counts)):
                    nursery.start_soon(loop, number)
        assert sum(counts) <= 60 * metrics.ANSWERS_PER_SECOND + 1
        assert min(counts) >= 60 * metrics.ANSWERS_PER_SECOND / len(counts) / 2
        assert scene.snapshots <= 61


async def test_connections_that_do_not_ask_make_room_for_one_that_does(autojump_clock: MockClock) -> None:
    async with serving() as scene:
        idle = [await scene.connect() for _ in range(64)]
        assert hints(await ask(scene)) == 1
        assert trio.current_time() < metrics.CONNECTION_SECONDS
        async with trio.open_nursery() as nursery:
            for stream in idle:
                nursery.start_soon(all_of, stream)


async def test_a_connection_ends_in_time_however_slowly_it_asks_or_takes_its_answer(autojump_clock: MockClock) -> None:
    async with serving() as scene:
        began = trio.current_time()
        slow = await scene.connect()
        with contextlib.suppress(trio.BrokenResourceError):
            for letter in b"GET / HTTP/1.1" * 10:
                await slow.send_all(bytes([letter]))
                await trio.sleep(0.5)
        assert trio.current_time() - began <= metrics.CONNECTION_SECONDS + 1.5
        await slow.aclose()
        for request in (b"GET /" + b"x" * 9000, b"GET / HTTP/1.1\r\n"):
            stream = await scene.connect(request)
            await stream.send_eof()
            with contextlib.suppress(trio.BrokenResourceError):  # what it did not read makes its end a reset
                assert await all_of(stream) == b""


async def test_head_and_other_methods(autojump_clock: MockClock) -> None:
    async with serving() as scene:
        answer = await ask(scene, b"HEAD / HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\n")
        assert (await ask(scene, b"POST / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 405 ")


class OutOfDescriptors(trio.abc.Listener[trio.SocketStream]):
    def __init__(self) -> None:
        self.tries = 0

    async def accept(self) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        self.tries += 1
        raise OSError(errno.EMFILE, "Too many open files")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_without_a_descriptor_accept_is_not_tried_in_a_loop(autojump_clock: MockClock) -> None:
    listener = OutOfDescriptors()
    with trio.move_on_after(10.5):
        await Server([listener], engine_statistics, version="1").run()
    assert listener.tries == 11


async def test_an_address_that_is_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        says = rf"^metrics at 127\.0\.0\.1 port {port}: Address already in use: each mount needs a port of its own$"
        with pytest.raises(UserError, match=says):
            await listen("127.0.0.1", port)
