"""``aoefs doctor``: everything on this host that can keep aoefs from working, or from working well.

A check looks at one thing and yields findings: *ok*, *warn* (it works, but not as well or as safely as it could) or
*fail* (aoefs does not work), each with what to do.  A check changes nothing and sends nothing; one that fails itself
is a finding too.  Exit 1 if something fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from aoefs import is_compiled
from aoefs.cli.options import add_interface_argument
from aoefs.errors import UserError
from aoefs.host import interfaces, mountpoint
from aoefs.host.background import LOG_SOCKETS
from aoefs.net import netlink
from aoefs.protocol.wire import payload_sectors

_PROC, _SYS = Path("/proc"), Path("/sys")
_CAP_NET_ADMIN, _CAP_SYS_RESOURCE = 12, 24
_CONSEQUENCES = {
    _CAP_NET_ADMIN: ("CAP_NET_ADMIN", "socket buffers are bounded by the system's limits"),
    _CAP_SYS_RESOURCE: ("CAP_SYS_RESOURCE", "a loop mount on top may hang when memory is short"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """``state`` is ok, warn or fail; ``check`` what was looked at, ``text`` what was found, ``mend`` what to do."""

    state: str
    check: str
    text: str
    mend: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_interface_argument(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more")


def run(arguments: argparse.Namespace) -> int:
    findings = examine(arguments.interface or ())
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    return 1 if any(finding.state == "fail" for finding in findings) else 0


def _print(findings: list[Finding]) -> None:
    lines = [(each.state, f"{each.check}: {each.text}" + (f": {each.mend}" if each.mend else "")) for each in findings]
    if not sys.stdout.isatty():
        for state, line in lines:
            print(f"{state:<5} {line}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for state, line in lines:
        table.add_row(Text(state, style=styles[state]), Text(line))
    Console().print(table)


def examine(names: tuple[str, ...] | list[str]) -> list[Finding]:
    """All findings on this host; ``names`` are the interfaces to look at, none meaning every Ethernet one."""
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", _check_python),
        ("packages", _check_packages),
        ("hot path", _check_compiled),
        ("fuse", _check_fuse),
        ("raw Ethernet", _check_raw_ethernet),
        ("capabilities", _check_capabilities),
        ("interfaces", lambda: _check_interfaces(names)),
        ("socket buffers", _check_buffers),
        ("kernel driver", _check_kernel_driver),
        ("system log", _check_log),
        ("mounts", _check_mounts),
    ]
    findings = []
    for name, check in checks:
        try:
            findings += list(check())
        except OSError as error:
            findings.append(Finding("warn", name, f"cannot be looked at: {error}"))
    return findings


def _check_python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036 (whoever runs it from a checkout may)
        yield Finding("fail", "python", version, "aoefs needs 3.11 or newer")
    else:
        yield Finding("ok", "python", version)


def _check_packages() -> Iterator[Finding]:
    from importlib import metadata

    for name in ("numpy", "pyfuse3", "rich", "trio"):
        try:
            importlib.import_module(name)
            yield Finding("ok", f"package {name}", metadata.version(name))
        except (ImportError, OSError) as error:  # OSError: a library that it needs does not load
            yield Finding("fail", f"package {name}", str(error), "pip install --force-reinstall aoefs")


def _check_compiled() -> Iterator[Finding]:
    if is_compiled():
        yield Finding("ok", "hot path", "compiled")
    else:
        mend = "install gcc and the Python headers, then 'pip install -v --force-reinstall --no-deps' aoefs again"
        yield Finding("warn", "hot path", "pure Python, which takes half as much processor time again", mend)


def _check_fuse() -> Iterator[Finding]:
    try:
        mountpoint.require_fuse()
    except UserError as error:
        yield Finding("fail", "fuse", str(error))
    else:
        yield Finding("ok", "fuse", "/dev/fuse works")
    helper = shutil.which("fusermount3")
    if helper is None:
        if os.geteuid() == 0:  # a user without it has just been told
            yield Finding("warn", "fusermount3", "missing", "install the package fuse3, if other users are to mount")
    elif os.geteuid() and not os.stat(helper).st_mode & 0o4000:
        yield Finding("fail", "fusermount3", f"{helper} is not setuid root", f"'chmod u+s {helper}', or run as root")
    else:
        yield Finding("ok", "fusermount3", helper)
    if mountpoint.user_allow_other():
        yield Finding("ok", "user_allow_other", "users may mount with --allow-other")
    else:
        mend = "add the line 'user_allow_other' to /etc/fuse.conf, if users are to mount with --allow-other"
        yield Finding("ok" if os.geteuid() == 0 else "warn", "user_allow_other", "not set", mend)


def _capabilities() -> int:
    """The effective capabilities of this process, as a bit mask."""
    for line in (_PROC / "self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _check_raw_ethernet() -> Iterator[Finding]:
    try:
        interfaces.require_packet_socket()
    except UserError as error:
        yield Finding("fail", "raw Ethernet", str(error))
    else:
        yield Finding("ok", "raw Ethernet", "packet sockets can be opened")


def _check_capabilities() -> Iterator[Finding]:
    have = _capabilities()
    for bit, (name, consequence) in _CONSEQUENCES.items():
        if have >> bit & 1:
            yield Finding("ok", name, "there")
        else:
            yield Finding("warn", name, f"missing, so {consequence}", "run as root, or give this capability")


def _check_interfaces(names: tuple[str, ...] | list[str]) -> Iterator[Finding]:
    listed = netlink.list_interfaces()
    wanted = names or [each.name for each in listed if each.ethernet]
    by_name = {each.name: each for each in listed}
    usable = 0
    for name in wanted:
        try:
            interfaces.choose([name], listed)
        except UserError as error:
            yield Finding(
                "fail" if names else "warn",
                f"interface {name}",
                str(error).removeprefix(f"interface {name}").lstrip(": "),
            )
            continue
        usable += 1
        interface = by_name[name]
        payload = payload_sectors(interface.mtu) * 512
        text = f"up, MTU {interface.mtu}: {payload} bytes of data in a frame"
        if not interface.running:
            yield Finding("warn", f"interface {name}", "no carrier", "plug the cable in, or bring its other end up")
        elif interface.mtu < 2000:
            mend = f"faster, if targets and switches carry it: 'ip link set {name} mtu 9000' (see aoefs path-test)"
            yield Finding("ok", f"interface {name}", text, mend)
        else:
            yield Finding("ok", f"interface {name}", text)
    if not usable and not names:
        yield Finding("fail", "interfaces", "no Ethernet interface can be used", "bring one up: 'ip link set IF up'")


def _check_buffers() -> Iterator[Finding]:
    from aoefs.net.packetsocket import RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES

    forced = _capabilities() >> _CAP_NET_ADMIN & 1
    for name, needed in (("rmem_max", RECEIVE_BUFFER_BYTES), ("wmem_max", SEND_BUFFER_BYTES)):
        try:
            limit = int((_PROC / "sys/net/core" / name).read_text())
        except FileNotFoundError:  # in a network namespace of older kernels
            continue
        if forced:
            yield Finding("ok", f"net.core.{name}", f"{limit}, which CAP_NET_ADMIN may exceed")
        elif limit < needed:
            mend = f"'sysctl -w net.core.{name}={needed}', or give CAP_NET_ADMIN"
            yield Finding("warn", f"net.core.{name}", f"{limit}, of {needed} wanted: bursts may be dropped", mend)
        else:
            yield Finding("ok", f"net.core.{name}", str(limit))


def _check_kernel_driver() -> Iterator[Finding]:
    if not (_SYS / "module/aoe").exists():
        yield Finding("ok", "kernel driver", "the module aoe is not loaded")
        return
    disks = sorted(path.name.replace("!", "/") for path in (_SYS / "block").glob("etherd!*"))
    text = "the module aoe is loaded" + (f" and shows {', '.join(disks)}" if disks else "")
    mend = "'modprobe -r aoe', or keep it off our interfaces by aoe-interfaces: never write one disk through both"
    yield Finding("warn", "kernel driver", text, mend)


def _check_log() -> Iterator[Finding]:
    there = [path for path in LOG_SOCKETS if os.path.exists(path)]
    if there:
        yield Finding("ok", "system log", there[0])
    else:
        mend = "mount with -f to see what happens, or start a log daemon"
        yield Finding("warn", "system log", "none, so a mount in the background is silent", mend)


def _check_mounts() -> Iterator[Finding]:
    for mount in mountpoint.own_mounts():
        if mount.is_dead:
            yield Finding("warn", f"mount {mount.path}", "its daemon is dead", f"'aoefs umount {mount.path}'")
        else:
            yield Finding("ok", f"mount {mount.path}", "live")
