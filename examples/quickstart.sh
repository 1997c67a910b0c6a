#!/bin/sh
# aoefs on a fresh Debian or Ubuntu: install what is missing, then show it at work (aoefs demo) without any hardware.
# Arguments go to the demo, such as --keep.
set -eu
cd "$(dirname "$0")/.."
. examples/prepare.sh

need_root
# shellcheck disable=SC2086 # a list
install_packages $run_packages
install_aoefs .
exec .venv/bin/aoefs demo "$@"
