#!/bin/sh
# aoefs on a fresh Debian or Ubuntu: install what is missing, then show it at work (aoefs demo) without any hardware.
# Arguments go to the demo, such as --keep.  Needs root (sudo) only while a Debian package is missing.
set -eu
cd "$(dirname "$0")/.."
. examples/prepare.sh

# shellcheck disable=SC2086 # a list
install_packages $run_packages
install_aoefs .
.venv/bin/aoefs demo "$@"
cat <<END

What next?
    sudo $PWD/.venv/bin/aoefs demo --keep    # the same, and it stays up for you to play with, until Ctrl-C
    $PWD/.venv/bin/aoefs doctor              # what this machine has and lacks for real disks
    sudo $PWD/.venv/bin/aoefs install        # then it is "aoefs" everywhere, with "man aoefs" and completions
END
