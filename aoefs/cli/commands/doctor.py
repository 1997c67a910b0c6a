"""``aoefs doctor``: what on this host can keep aoefs from working, or from working well.

A check looks at one thing and yields findings: *ok*, *warn* (it works, but not as well or as safely as it could) or
*fail* (aoefs does not work), with advice.  A check changes nothing and sends nothing; a check that cannot be made is a
finding too.  Exit code 1 if something fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from aoefs import is_compiled
from aoefs.cli.options import add_interface_argument, pip
from aoefs.errors import UserError
from aoefs.fuse.tuning import request_timeout
from aoefs.host import interfaces, mountpoint
from aoefs.host.mountpoint import Mount
from aoefs.host.mountreader import Liveness
from aoefs.host.systemlog import LOG_SOCKETS
from aoefs.net import netlink
from aoefs.protocol.wire import payload_sectors
from aoefs.status.text import printable

PROC, SYS = Path("/proc"), Path("/sys")
PACKAGES = ("pyfuse3", "rich", "trio")
_CAP_NET_ADMIN, _CAP_SYS_RESOURCE = 12, 24
_CONSEQUENCES = {
    _CAP_NET_ADMIN: ("CAP_NET_ADMIN", "socket buffers are bounded by the system's limits"),
    _CAP_SYS_RESOURCE: ("CAP_SYS_RESOURCE", "a loop mount on top may hang when memory is short"),
}


class Finding(NamedTuple):
    """``state`` is ok, warn or fail; ``check`` names what was looked at, ``text`` what was found."""

    state: str
    check: str
    text: str
    advice: str = ""  # what to do

    def __str__(self) -> str:
        return printable(": ".join(filter(None, (self.check, self.text, self.advice))))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_interface_argument(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def run(arguments: argparse.Namespace) -> int:
    findings = examine(arguments.interface or ())
    if arguments.json:
        fields = "state", "check", "text", "mend"  # as they are named in JSON
        print(json.dumps([dict(zip(fields, finding, strict=True)) for finding in findings], indent=2))
    else:
        _print(findings)
    return 1 if any(finding.state == "fail" for finding in findings) else 0


def _print(findings: list[Finding]) -> None:
    if not sys.stdout.isatty():
        for finding in findings:
            print(f"{finding.state:<5} {finding}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from aoefs.status.layout import BAD, GOOD, NOTE

    table = Table.grid(padding=(0, 1))
    styles = {"ok": GOOD, "warn": NOTE, "fail": BAD}
    for finding in findings:
        table.add_row(Text(finding.state, style=styles[finding.state]), Text(str(finding)))
    Console().print(table)


def examine(names: Sequence[str] = ()) -> list[Finding]:
    """All findings on this host; ``names`` are the interfaces to look at, by default every Ethernet interface."""
    checks = {
        "python": _check_python(),
        "fuse": _check_fuse(),
        "capabilities": _check_capabilities(),
        "interfaces": _check_interfaces(names),
        "socket buffers": _check_buffers(),
        "kernel driver": _check_kernel_driver(),
        "system log": _check_log(),
        "request timeout": _check_request_timeout(),
        "mounts": _check_mounts(),
    }
    findings: list[Finding] = []
    for name, found in checks.items():
        try:
            findings += list(found)
        except OSError as error:
            findings.append(Finding("warn", name, f"cannot be looked at: {error}"))
    return findings


def _verdict(check: str, good: object, text: str, problem: str, advice: str, *, state: str = "warn") -> Finding:
    """Ok with ``text`` if it is ``good``; else ``state``, with the problem and the advice."""
    return Finding("ok", check, text) if good else Finding(state, check, problem, advice)


def _check_python() -> Iterator[Finding]:
    from importlib import metadata

    version = ".".join(map(str, sys.version_info[:3]))
    new = sys.version_info >= (3, 11)  # pip sees to that, but a checkout runs without it
    yield _verdict("python", new, version, version, "aoefs needs 3.11 or newer", state="fail")
    for name in PACKAGES:
        try:
            importlib.import_module(name)
            yield Finding("ok", f"package {name}", metadata.version(name))
        except (ImportError, OSError) as error:  # OSError: a C library of it does not load
            yield Finding("fail", f"package {name}", str(error), pip("install --force-reinstall aoefs"))
    again = pip("install -v --force-reinstall --no-deps .")
    advice = f"install gcc and the Python headers, then in the source of aoefs {again}"
    slow = "pure Python, which takes half as much processor time again"
    yield _verdict("hot path", is_compiled(), "compiled", slow, advice)


def _required(check: str, require: Callable[[], None], ok: str) -> Finding:
    try:
        require()
    except UserError as error:
        return Finding("fail", check, str(error))
    return Finding("ok", check, ok)


def _check_fuse() -> Iterator[Finding]:
    yield _required("fuse", mountpoint.require_fuse, "/dev/fuse works")
    helper = shutil.which("fusermount3")
    if helper is None:
        if os.geteuid() == 0:  # for a user this is a failure above
            yield Finding("warn", "fusermount3", "missing", "install the package fuse3, if other users are to mount")
    elif os.geteuid() and not os.stat(helper).st_mode & 0o4000:
        yield Finding("fail", "fusermount3", f"{helper} is not setuid root", f"'chmod u+s {helper}', or run as root")
    else:
        yield Finding("ok", "fusermount3", helper)
    advice = "add the line 'user_allow_other' to /etc/fuse.conf, if users are to mount with --allow-other"
    text, state = "users may mount with --allow-other", "ok" if os.geteuid() == 0 else "warn"
    yield _verdict("user_allow_other", mountpoint.user_allow_other(), text, "not set", advice, state=state)


def _capabilities() -> int:
    """The effective capabilities of this process, as a bit mask."""
    for line in (PROC / "self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _check_capabilities() -> Iterator[Finding]:
    yield _required("raw Ethernet", interfaces.require_packet_socket, "packet sockets can be opened")
    have = _capabilities()
    for bit, (name, consequence) in _CONSEQUENCES.items():
        missing = f"missing, so {consequence}"
        yield _verdict(name, have >> bit & 1, "there", missing, "run as root, or give this capability")


def _check_interfaces(names: Sequence[str]) -> Iterator[Finding]:
    listed = netlink.list_interfaces()
    usable = 0
    for name in names or [each.name for each in listed if each.ethernet]:
        try:
            [interface] = interfaces.choose([name], listed)
        except UserError as error:
            reason = str(error).removeprefix(f"interface {name}").lstrip(": ")
            yield Finding("fail" if names else "warn", f"interface {name}", reason)
            continue
        usable += 1
        payload = payload_sectors(interface.mtu) * 512
        text = f"up, MTU {interface.mtu}: {payload} bytes of data in a frame"
        if not interface.running:
            yield Finding("warn", f"interface {name}", "no carrier", "plug the cable in, or bring its other end up")
        elif interface.mtu < 2000:
            advice = f"faster, if targets and switches carry it: 'ip link set {name} mtu 9000' (see aoefs path-test)"
            yield Finding("ok", f"interface {name}", text, advice)
        else:
            yield Finding("ok", f"interface {name}", text)
    if not usable and not names:
        yield Finding("fail", "interfaces", "no Ethernet interface can be used", "bring one up: 'ip link set IF up'")


def _check_buffers() -> Iterator[Finding]:
    from aoefs.net.packetsocket import RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES

    forced = _capabilities() >> _CAP_NET_ADMIN & 1
    for name, needed in (("rmem_max", RECEIVE_BUFFER_BYTES), ("wmem_max", SEND_BUFFER_BYTES)):
        try:
            limit = int((PROC / "sys/net/core" / name).read_text())
        except FileNotFoundError:  # in a network namespace of older kernels
            continue
        if forced:
            yield Finding("ok", f"net.core.{name}", f"{limit}, which CAP_NET_ADMIN may exceed")
        else:
            advice = f"'sysctl -w net.core.{name}={needed}', or give CAP_NET_ADMIN"
            little = f"{limit}, of {needed} wanted: bursts may be dropped"
            yield _verdict(f"net.core.{name}", limit >= needed, str(limit), little, advice)


def _check_kernel_driver() -> Iterator[Finding]:
    if not (SYS / "module/aoe").exists():
        yield Finding("ok", "kernel driver", "the module aoe is not loaded")
        return
    disks = sorted(path.name.replace("!", "/") for path in (SYS / "block").glob("etherd!*"))
    text = "the module aoe is loaded" + (f" and shows {', '.join(disks)}" if disks else "")
    advice = "'modprobe -r aoe', or keep it off our interfaces by aoe-interfaces: never write one disk through both"
    yield Finding("warn", "kernel driver", text, advice)


def _check_log() -> Iterator[Finding]:
    there = [path for path in LOG_SOCKETS if os.path.exists(path)]
    advice = "mount with -f to see what happens, or start a log daemon"
    yield _verdict("system log", there, "".join(there[:1]), "none, so a mount in the background is silent", advice)


def _check_mounts() -> Iterator[Finding]:
    mounts = mountpoint.aoefs_mounts()
    with ThreadPoolExecutor(max(1, len(mounts))) as pool:  # one that is silent takes seconds, all of them no longer
        for mount, liveness in zip(mounts, pool.map(Mount.liveness, mounts), strict=True):
            check, umount = f"mount {mount.path}", f"'aoefs umount --lazy {mount.path}'"
            if not mount.is_trusted:
                yield Finding("ok", check, f"of user {mount.owner}, so it was not looked at")
            elif liveness is Liveness.DEAD:
                yield Finding("warn", check, "its daemon is dead", f"'aoefs umount {mount.path}'")
            elif liveness is Liveness.SILENT:
                text = f"its daemon{mount.pid_note()} does not answer"
                yield Finding("warn", check, text, f"wait for it, or {umount} and kill it")
            else:
                yield Finding("ok", check, "live")


def _check_request_timeout() -> Iterator[Finding]:
    limit = request_timeout()
    if limit is None:
        yield Finding("ok", "request timeout", "none")
    else:
        names = "fs.fuse.default_request_timeout and fs.fuse.max_request_timeout"
        text = f"requests that take longer than {limit:g} s abort the whole mount"
        yield Finding("warn", "request timeout", text, f"keep --deadsecs below, or set {names} to 0")
