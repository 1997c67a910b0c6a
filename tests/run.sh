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
.venv/bin/mypy
# Three at a time, since most tests wait for real programs.  A file is never split: its tests share mounts.
if [ $# = 0 ]; then # some of it once more, with two processes for each mount
    AOEFS_LAB_WORKERS=2 .venv/bin/python -m pytest -n 3 --dist loadfile \
        tests/mount/test_death.py tests/mount/test_lifecycle.py tests/mount/test_semantics.py tests/faults/test_loss.py
fi
exec .venv/bin/python -m pytest -n 3 --dist loadfile "$@"
