"""The options of a mount, as a command line and as mount(8) writes them."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoefs.errors import UserError
from aoefs.options import MountOptions, Parser, add_arguments, mount_options


def parse(*arguments: str) -> MountOptions:
    parser = Parser(prog="aoefs")
    add_arguments(parser)
    return mount_options(parser.parse_intermixed_args(arguments))


DEFAULTS = MountOptions(mountpoint="/mnt", uid=os.getuid(), gid=os.getgid())


def test_a_mount_point_alone_gives_the_defaults() -> None:
    assert parse("/mnt") == DEFAULTS
    assert (DEFAULTS.deadsecs, DEFAULTS.maxout, DEFAULTS.max_targets, DEFAULTS.umask) == (180, 64, 1024, 0o077)


def test_a_relative_mount_point_becomes_absolute() -> None:
    assert parse("here").mountpoint == os.path.join(os.getcwd(), "here")


# Every long option, its value if it takes one, and what it makes of the record.
EVERY_OPTION = [
    ("interface", "eth1", ("interfaces", ("eth1",))),
    ("foreground", None, ("foreground", True)),
    ("console", None, ("console", True)),
    ("read-only", None, ("read_only", True)),
    ("shards", "3", ("shards", 3)),
    ("deadsecs", "0.5", ("deadsecs", 0.5)),
    ("maxout", "7", ("maxout", 7)),
    ("direct", None, ("direct", True)),
    ("allow-mac", "02-00-00-00-00-0a", ("allow_mac", (b"\2\0\0\0\0\n",))),
    ("max-targets", "5", ("max_targets", 5)),
    ("reserve", None, ("reserve", True)),
    ("plain-loop", None, ("plain_loop", True)),
    ("allow-other", None, ("allow_other", True)),
    ("uid", "12", ("uid", 12)),
    ("uid", "root", ("uid", 0)),
    ("gid", "13", ("gid", 13)),
    ("umask", "022", ("umask", 0o022)),
    ("verbose", None, ("verbose", 1)),
]


@pytest.mark.parametrize(("name", "value", "effect"), EVERY_OPTION)
def test_a_long_option_and_its_word_do_the_same(name: str, value: str | None, effect: tuple[str, object]) -> None:
    suffix = "" if value is None else f"={value}"
    for options in (
        parse("/mnt", f"--{name}{suffix}"),
        parse("/mnt", "-o", name + suffix),
        parse("/mnt", "-o", name.replace("-", "_") + suffix),
    ):
        assert getattr(options, effect[0]) == effect[1]
        assert all(
            getattr(options, field) == getattr(DEFAULTS, field)
            for field in MountOptions.__dataclass_fields__
            if field != effect[0]
        )


def test_every_field_of_the_record_can_be_set() -> None:
    settable = {effect[0] for _, _, effect in EVERY_OPTION}
    assert set(MountOptions.__dataclass_fields__) - settable == {"mountpoint"}


def test_the_standard_words_of_mount_mean_nothing() -> None:
    words = "rw,defaults,noauto,user,dev,nosuid,exec,noatime,relatime,_netdev,nofail,x-systemd.automount,comment=a b"
    assert parse("any", "/mnt", "-o", words) == DEFAULTS
    assert parse("any", "/mnt", "-o", "X-mount.mkdir=0755,,", "-o", "suid,fsname=x") == DEFAULTS


def test_ro_is_read_only_and_words_come_in_several_lists() -> None:
    options = parse("-o", "ro,deadsecs=3", "eth0,eth1", "-o", "deadsecs=4", "/mnt")
    assert (options.read_only, options.deadsecs, options.interfaces) == (True, 4, ("eth0", "eth1"))


def test_interfaces_add_up_without_doubles() -> None:
    assert parse("eth2,eth0", "/mnt", "-i", "eth0", "-o", "interface=eth1").interfaces == ("eth0", "eth1", "eth2")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no mount point given"),
        ([""], "no mount point"),
        (["a", "b", "c"], "too many arguments"),
        (["eth0,,eth1", "/mnt"], "interface name is empty"),
        (["/mnt", "-o", "frob"], "unknown word 'frob'"),
        (["/mnt", "-o", "ro,frob=3"], "unknown word 'frob=3'"),
        (["/mnt", "-o", "=3"], "unknown word '=3'"),
        (["/mnt", "-o", "help"], "unknown word 'help'"),
        (["/mnt", "-o", "dead=3"], "unknown word 'dead=3'"),
        (["/mnt", "-o", "direct=no"], "in the -o list: argument --direct"),
        (["/mnt", "-o", "deadsecs"], "in the -o list: argument --deadsecs"),
        (["/mnt", "--deadsecs", "soon"], "'soon' is not a number of seconds"),
        (["/mnt", "--deadsecs=-1"], "'-1' is not a number of seconds"),
        (["/mnt", "--deadsecs=nan"], "'nan' is not"),
        (["/mnt", "--deadsecs=inf"], "'inf' is not"),
        (["/mnt", "--maxout", "0"], "'0' is not a whole number from 1"),
        (["/mnt", "--shards", "²"], "'²' is not a whole number"),
        (["/mnt", "--umask", "999"], "'999' is not an octal mode"),
        (["/mnt", "--uid", "no such user"], "there is no user 'no such user'"),
        (["/mnt", "--gid", "nobodys"], "there is no group 'nobodys'"),
        (["/mnt", "--uid", "99999999999"], "'99999999999' is not a whole number from 0 to 4294967294"),
        (["/mnt", "--allow-mac", "1:2"], "'1:2' is not a MAC address: write it as"),
        (["/mnt", "--read"], "unrecognized arguments: --read"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], says: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(*arguments)
    assert says in str(refused.value)
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)


@given(st.text(max_size=30))
def test_no_word_list_does_worse_than_a_user_error(words: str) -> None:
    with contextlib.suppress(UserError):
        assert parse("/mnt", f"-o{words}" if words else "-oro").mountpoint == "/mnt"
