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
    [ "$(id -u)" -eq 0 ] || stop "needs root, for network namespaces and packages: run it with sudo"
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

# is_compiled: whether the modules compiled in place (none, with AOEFS_PURE=1) are as new as their sources.
is_compiled() {
    [ "$(cat .venv/installed-pure 2>/dev/null)" = "${AOEFS_PURE:-0}" ] || return 1
    for built in aoefs/*.so aoefs/*/*.so; do
        [ ! "${built%%.*}.py" -nt "$built" ] && [ ! "${built%%.*}.pyx" -nt "$built" ] || return 1
    done
}

# install_aoefs WHAT: "." or ".[test]" into .venv, and again when pyproject.toml, the build backend or a compiled module
# has changed.  Editable, so that the command and the tests never run different code.
install_aoefs() {
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        stop "needs Python 3.11 or newer, and python3 is $(python3 -V 2>&1 | cut -d ' ' -f 2)"
    .venv/bin/python -c '' 2>/dev/null || python3 -m venv --clear .venv
    stamp=.venv/installed-aoefs$(printf %s "$1" | tr -dc a-z)
    if [ ! -x .venv/bin/aoefs ] || [ ! "$stamp" -nt pyproject.toml ] ||
        [ ! "$stamp" -nt .build/backend.py ] || ! is_compiled; then
        echo "$0: installing aoefs into $(pwd)/.venv"
        .venv/bin/python -m pip install -q --disable-pip-version-check -e "$1"
        printf %s "${AOEFS_PURE:-0}" >.venv/installed-pure
        touch "$stamp"
    fi
}
