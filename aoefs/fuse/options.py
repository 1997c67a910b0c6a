"""The options of a mount: one record, which ``cli.options`` makes of the command line, ``-o`` and a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aoefs.protocol.wire import ALL, Address, Share

# What a live mount can change, by SIGHUP and by mount -o remount, and whether a value of JSON is good for it.
LIVE: Mapping[str, Callable[[Any], bool]] = {
    "deadsecs": lambda value: type(value) in (int, float) and 0 <= value < math.inf,
    "maxout": lambda value: type(value) is int and 1 <= value <= 0xFFFF,
    "log_level": lambda value: value in (None, "debug", "info", "warning", "error"),
    "interfaces": lambda value: type(value) is list and all(type(name) is str for name in value),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """All options of a mount.

    ``mountpoint`` is an absolute path; ``interfaces`` are names, none meaning every usable one; ``shards`` is None for
    as many as there are usable CPUs; ``deadsecs`` is in seconds, 0 means never; ``maxout`` is the most commands in
    flight to one target; ``allow_mac`` lists the only MACs to talk to, 6 bytes each, none meaning all; ``disk`` says
    which serial is meant where several disks answer for one address; with ``fixed_paths`` a target has those found in
    its first second; ``slow`` is the seconds after which a request is logged as slow, None for never; ``busy_poll`` is
    the microseconds for which a task that waits in place polls before it sleeps, or "auto"; ``umask`` is taken from
    mode 0666 of the files; ``plain_loop`` turns ``fuse.workerloop`` off; ``pid_file`` is an absolute path; ``metrics``
    is the address and the TCP port to serve them at; ``verbose`` is 0, 1 (-v) or more;
    ``log_file`` is an absolute path, ``log_level`` debug, info, warning or error, ``log_format`` text or json;
    ``workers`` is how many processes share the targets, or "auto".
    """

    mountpoint: str
    interfaces: tuple[str, ...] = ()
    foreground: bool = False
    console: bool = False
    read_only: bool = False
    shards: int | None = None
    deadsecs: float = 180.0
    maxout: int = 64
    busy_poll: int | str = "auto"
    direct: bool = False
    sync: bool = False
    allow_mac: tuple[bytes, ...] = ()
    disk: tuple[tuple[Address, str], ...] = ()
    uid: int
    gid: int
    umask: int = 0o077
    allow_other: bool = False
    max_targets: int = 1024
    fixed_paths: bool = False
    reserve: bool = False
    slow: float | None = None
    plain_loop: bool = False
    pid_file: str | None = None
    metrics: tuple[str, int] | None = None
    verbose: int = 0
    log_file: str | None = None
    log_level: str | None = None
    log_format: str = "text"
    workers: int | str = 1


@dataclass(frozen=True, slots=True)
class Part:
    """What a process is of a mount: the ``share`` of the targets that it has.  A worker ``serves`` the mount point of
    ``main_process`` (its pid), and ``incarnation`` counts the processes before it.
    """

    share: Share = ALL
    serves: str = ""
    incarnation: int = 0
    main_process: int = 0

    @property
    def number(self) -> int:
        """No other process of the mount, now or before, has it; 0 for the main process."""
        return self.incarnation * self.share.of + self.share.number
