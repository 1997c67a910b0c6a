"""The options of a mount, as a command line and as mount(8) writes them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoefs.cli import options as options_module
from aoefs.cli.options import Parser, add_arguments, known_words, mount_options
from aoefs.errors import UserError
from aoefs.fuse.options import MountOptions
from aoefs.protocol.wire import Address


@pytest.fixture(autouse=True)
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of /etc/aoefs.toml for these tests; nothing is there yet."""
    path = tmp_path / "aoefs.toml"
    monkeypatch.setattr(options_module, "CONFIG_FILE", str(path))
    return path


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
    ("sync", None, ("sync", True)),
    ("allow-mac", "02-00-00-00-00-0a", ("allow_mac", (b"\2\0\0\0\0\n",))),
    ("disk", "e7.1=WD-1 2", ("disk", ((Address(7, 1), "WD-1 2"),))),
    ("max-targets", "5", ("max_targets", 5)),
    ("fixed-paths", None, ("fixed_paths", True)),
    ("reserve", None, ("reserve", True)),
    ("workers", "auto", ("workers", "auto")),
    ("workers", "4", ("workers", 4)),
    ("busy-poll", "auto", ("busy_poll", "auto")),
    ("busy-poll", "off", ("busy_poll", 0)),
    ("busy-poll", "200", ("busy_poll", 200)),
    ("slow", "0.5", ("slow", 0.5)),
    ("plain-loop", None, ("plain_loop", True)),
    ("allow-other", None, ("allow_other", True)),
    ("uid", "12", ("uid", 12)),
    ("uid", "root", ("uid", 0)),
    ("gid", "13", ("gid", 13)),
    ("umask", "022", ("umask", 0o022)),
    ("pid-file", "/run/aoefs.pid", ("pid_file", "/run/aoefs.pid")),
    ("metrics", "9100", ("metrics", ("127.0.0.1", 9100))),
    ("metrics", "[::1]:9100", ("metrics", ("::1", 9100))),
    ("metrics", "0.0.0.0:1", ("metrics", ("0.0.0.0", 1))),
    ("verbose", None, ("verbose", 1)),
    ("log-file", "/var/log/aoefs", ("log_file", "/var/log/aoefs")),
    ("log-level", "error", ("log_level", "error")),
    ("log-format", "json", ("log_format", "json")),
]


@pytest.mark.parametrize("text", ["0", "201", "1.5", "fast", ""])
def test_a_time_of_polling_is_up_to_200_microseconds_or_a_word(text: str) -> None:
    with pytest.raises(UserError, match="is not auto, off, or microseconds from 1 to 200"):
        parse("/mnt", f"--busy-poll={text}")


FLAGS = [(name, effect) for name, value, effect in EVERY_OPTION if value is None and name != "verbose"]


@pytest.mark.parametrize(("name", "value", "effect"), EVERY_OPTION)
def test_a_long_option_its_word_and_its_key_do_the_same(
    name: str, value: str | None, effect: tuple[str, object], config_file: Path
) -> None:
    suffix = "" if value is None else f"={value}"
    said = [
        parse("/mnt", f"--{name}{suffix}"),
        parse("/mnt", "-o", name + suffix),
        parse("/mnt", "-o", name.replace("-", "_") + suffix),
    ]
    for key in (name, name.replace("-", "_")):
        config_file.write_text(f"{key} = {'1' if name == 'verbose' else 'true' if value is None else repr(value)}\n")
        said.append(parse("/mnt"))
    for options in said:
        assert getattr(options, effect[0]) == effect[1]
        assert all(
            getattr(options, field) == getattr(DEFAULTS, field)
            for field in MountOptions.__dataclass_fields__
            if field != effect[0]
        )


@pytest.mark.parametrize(("name", "effect"), FLAGS)
def test_a_flag_of_the_file_can_be_taken_back(name: str, effect: tuple[str, object], config_file: Path) -> None:
    config_file.write_text(f"{name} = true\n")
    for arguments in ([f"--no-{name}"], ["-o", f"no_{name}"], [f"--no-{name}", "-o", name]):
        assert getattr(parse("/mnt", *arguments), effect[0]) is False
    config_file.write_text(f"{name} = false\n")
    assert getattr(parse("/mnt"), effect[0]) is False
    assert getattr(parse("/mnt", f"--{name}"), effect[0]) is True


def test_numbers_and_lists_of_the_file_are_written_as_toml_has_them(config_file: Path) -> None:
    config_file.write_text(
        'interface = ["eth1", "eth2"]\nallow-mac = ["02:00:00:00:00:01", "02:00:00:00:00:02"]\n'
        "deadsecs = 0.5\nmaxout = 3\nuid = 12\nmetrics = 9100\nverbose = 2\n"
    )
    options = parse("/mnt")
    assert options.interfaces == ("eth1", "eth2")
    assert [mac[-1] for mac in options.allow_mac] == [1, 2]
    assert (options.deadsecs, options.maxout, options.uid, options.verbose) == (0.5, 3, 12, 2)
    assert options.metrics == ("127.0.0.1", 9100)


def test_the_command_line_wins_over_the_words_and_these_over_the_file(config_file: Path) -> None:
    config_file.write_text("deadsecs = 1\nmaxout = 1\nshards = 1\nverbose = 1\n")
    options = parse("-o", "deadsecs=2,maxout=2,verbose", "/mnt", "--deadsecs", "3", "-v")
    assert (options.deadsecs, options.maxout, options.shards, options.verbose) == (3, 2, 1, 3)
    assert parse("/mnt", "--deadsecs", "0").deadsecs == 0


def test_interfaces_and_macs_of_the_file_are_replaced_not_added_to(config_file: Path) -> None:
    config_file.write_text('interface = ["eth1", "eth2"]\nallow-mac = ["02:00:00:00:00:01"]\n')
    for arguments in (["-i", "eth3", "/mnt"], ["/mnt", "-o", "interface=eth3"], ["eth3", "/mnt"]):
        assert parse(*arguments).interfaces == ("eth3",)
    assert parse("any", "/mnt").interfaces == ()
    assert parse("none", "/mnt").interfaces == ("eth1", "eth2")
    assert parse("/mnt", "--allow-mac", "02:00:00:00:00:09").allow_mac == (b"\2\0\0\0\0\t",)


def test_another_file_can_be_named(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_file.write_text("deadsecs = 1\nmaxout = 1\n")
    (tmp_path / "other.toml").write_text("deadsecs = 2\n")
    monkeypatch.chdir(tmp_path)
    for arguments in (["--config", "other.toml"], ["-o", f"config={tmp_path}/other.toml"]):
        options = parse("/mnt", *arguments)
        assert (options.deadsecs, options.maxout) == (2, 64)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("frob = 1", "{}: frob: no such option (see aoefs --help)"),
        ("config = '/x'", "{}: config: no such option"),
        ("option-lists = 'ro'", "{}: option-lists: no such option"),
        ("deadsecs = 'soon'", "{}: deadsecs: argument --deadsecs: 'soon' is not a number of seconds"),
        ("deadsecs = true", "{}: deadsecs: argument --deadsecs: expected one argument"),
        ("deadsecs = inf", "{}: deadsecs: argument --deadsecs: 'inf' is not"),
        ("shards = [1, 2]", "{}: shards: write a text, a number"),
        ("deadsecs = 2000-01-01", "{}: deadsecs: write a text, a number"),
        ("[mount]\nro = true", "{}: mount: write a text, a number"),
        ("direct = 'yes'", "{}: direct: --direct takes no value"),
        ("deadsec = 30", "{}: deadsec: no such option: did you mean deadsecs?"),
        ("umask = 22", '{}: umask: write it as a text, such as "022"'),
        ("verbose = true", "{}: verbose: write 0, 1 or 2"),
        ("verbose = 3", "{}: verbose: write 0, 1 or 2"),
        ("ro", "{} is no TOML file: "),
        ("a = '\udcff'", "{} is no TOML file: "),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_it(text: str, says: str, config_file: Path) -> None:
    config_file.write_text(text, errors="surrogateescape")
    with pytest.raises(UserError) as refused:
        parse("/mnt")
    assert str(refused.value).startswith(says.format(config_file))
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.toml cannot be read: No such file"):
        parse("/mnt", "--config", str(tmp_path / "missing.toml"))


def test_sloppy_mounts_drop_what_nobody_knows_and_nothing_else() -> None:
    assert known_words("ro,frob,deadsecs=3,noauto,x-y,grpid=1,no-direct") == "ro,deadsecs=3,no-direct"
    with pytest.raises(UserError, match="'soon' is not"):
        known_words("deadsecs=soon")


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
        (["/mnt", "-o", "direct=no"], "in the -o list: --direct takes no value"),
        (["/mnt", "-o", "ro=1"], "in the -o list: --read-only takes no value"),
        (["/mnt", "-o", "deadsec=30"], "unknown word 'deadsec=30' in the -o list: did you mean deadsecs?"),
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
        (["/mnt", "--disk", "e7.1"], "'e7.1' names no disk: write e7.0=SERIAL"),
        (["/mnt", "--disk", "7=serial"], "'7=serial' names no disk: write e7.0=SERIAL"),
        (["/mnt", "--allow-mac", "1:2"], "'1:2' is not a MAC address: write it as"),
        (["/mnt", "--metrics", "x"], "'x' is not a place for metrics: write PORT or ADDRESS:PORT"),
        (["/mnt", "--metrics", ":9100"], "':9100' is not a place"),
        (["/mnt", "--metrics", "127.0.0.1:0"], "'127.0.0.1:0' is not a place"),
        (["/mnt", "--pid-file", ""], "a file name is empty"),
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
