# For examples/quickstart.sh and tests/run.sh, which source this from the top of the checkout.
# Both may run many times: only what is missing is installed, and its names are printed first.
# shellcheck shell=sh

# aoefs needs these; pip compiles pyfuse3, hence the compiler.
run_packages='python3 python3-venv python3-dev gcc libc6-dev pkg-config fuse3 libfuse3-dev iproute2 mount e2fsprogs'

stop() {
    echo "$0: $1" >&2
    exit 2
}

need_root() {
    [ "$(id -u)" -eq 0 ] || stop "needs root, for ${1:-network namespaces}: run it with sudo"
}

# install_packages NAME...: those that are missing, through apt-get.
install_packages() {
    missing=
    for name in "$@"; do
        case $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null || true) in
        installed) ;;
        *) missing="$missing $name" ;;
        esac
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || stop "needs Debian or Ubuntu; elsewhere install what these stand for:$missing"
    need_root "the packages$missing"
    apt-get update -qq || echo "$0: apt-get update failed: using the package lists that are here" >&2
    wanted=
    for name in $missing; do # a release may lack one; tests that need it are skipped and say so
        if apt-cache show "$name" >/dev/null 2>&1; then
            wanted="$wanted $name"
        else
            echo "$0: this release has no package $name" >&2
        fi
    done
    [ -n "$wanted" ] || return 0
    echo "$0: installing$wanted"
    # shellcheck disable=SC2086 # a list
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $wanted >/dev/null
}

# is_compiled: whether the modules compiled in place (the frames alone, with AOEFS_PURE=1) are as new as their sources.
is_compiled() {
    set -- aoefs/net/frames.*.so
    [ -e "$1" ] && [ ! aoefs/net/mmsg.pxd -nt "$1" ] || return 1
    [ "$(cat .venv/installed-pure 2>/dev/null)" = "${AOEFS_PURE:-0}" ] || return 1
    for built in aoefs/*.so aoefs/*/*.so; do
        [ ! "${built%%.*}.py" -nt "$built" ] && [ ! "${built%%.*}.pyx" -nt "$built" ] || return 1
    done
}

# as_owner COMMAND...: as the user whose checkout this is, so that sudo leaves no files of root in it.
as_owner() {
    owner=$(stat -c %u .)
    if [ "$(id -u)" -eq 0 ] && [ "$owner" -ne 0 ]; then
        home=$(getent passwd "$owner" | cut -d : -f 6)
        HOME=${home:-/nonexistent} setpriv --reuid="$owner" --regid="$(stat -c %g .)" --clear-groups -- "$@"
    else
        "$@"
    fi
}

# install_aoefs WHAT: "." or ".[test]" into .venv, and again when pyproject.toml, the build backend or a compiled module
# has changed.  Editable, so that the command and the tests never run different code.
install_aoefs() {
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        stop "needs Python 3.11 or newer, and python3 is $(python3 -V 2>&1 | cut -d ' ' -f 2)"
    .venv/bin/python -c '' 2>/dev/null || as_owner python3 -m venv --clear .venv
    stamp=.venv/installed-aoefs$(printf %s "$1" | tr -dc a-z)
    if [ ! -x .venv/bin/aoefs ] || [ ! "$stamp" -nt pyproject.toml ] ||
        [ ! "$stamp" -nt .build/backend.py ] || ! is_compiled; then
        echo "$0: installing aoefs into $(pwd)/.venv: pip fetches its packages, then compiles pyfuse3 and aoefs"
        echo "$0: that takes some minutes, the most of it for the C compiler (AOEFS_PURE=1 leaves most of aoefs as Python)"
        (n=0; while sleep 20 >/dev/null 2>&1; do n=$((n + 20)); echo "$0: still at it, after $n s"; done) &
        ticker=$!
        trap 'kill $ticker 2>/dev/null' EXIT
        as_owner .venv/bin/python -m pip install -q --disable-pip-version-check -e "$1"
        kill $ticker
        trap - EXIT
        as_owner .venv/bin/python -m compileall -q aoefs # what root runs later finds that done
        as_owner sh -c "printf %s '${AOEFS_PURE:-0}' >.venv/installed-pure && touch $stamp"
    fi
}
