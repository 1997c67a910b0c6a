#!/bin/sh
# All checks and tests on a fresh Debian or Ubuntu: install what is missing, then ruff, mypy and pytest.
# Arguments go to pytest, such as -k link.
set -eu
cd "$(dirname "$0")/.."
. examples/prepare.sh

need_root
# Other targets and initiators, and programs that use disks: aoefs is tested with all of them.
# shellcheck disable=SC2086 # a list
install_packages $run_packages vblade aoetools user-mode-linux nbdkit libnbd-bin tshark fio qemu-utils \
    xfsprogs btrfs-progs dosfstools fdisk gdisk parted busybox-static cpio kmod util-linux procps psmisc strace tmux \
    systemd mandoc zsh fish
install_aoefs '.[test]'
.venv/bin/ruff check
.venv/bin/ruff format --check
# pytest compiles the test modules once, here, beside mypy: else each of its processes would.
unset PYTHONDONTWRITEBYTECODE
.venv/bin/python -m pytest --collect-only -q "$@" >/dev/null 2>&1 & # the run below shows what fails
.venv/bin/mypy
wait
workers=
if [ $# = 0 ]; then # some of it once more, beside all the others, with two processes for each mount
    log=$(mktemp)
    AOEFS_LAB_WORKERS=2 .venv/bin/python -m pytest -q -p no:cacheprovider tests/mount/test_death.py \
        tests/mount/test_lifecycle.py tests/mount/test_semantics.py tests/faults/test_loss.py >"$log" 2>&1 &
    workers=$!
fi
# Four at a time, since most tests wait for real programs.  A file is never split: its tests share mounts.  The files
# begin in the order that tests/conftest.py gives them.
code=0
.venv/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder "$@" || code=$?
if [ -n "$workers" ]; then
    wait "$workers" || code=$?
    echo "with two processes for each mount:"
    cat "$log"
    rm "$log"
fi
exit "$code"
