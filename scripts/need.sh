#!/bin/sh
# See to it that some programs are on this machine: install them with apt as root or with sudo,
# or say what to type.
# usage: need.sh PACKAGE...
set -eu

# Debian keeps servers in sbin, which is not in the path of every user.
on_path() {
    PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v "$1" >/dev/null 2>&1
}

present() {
    case $1 in
        rabbitmq-server)
            [ -n "${REGARDS_NB_AMQP_URL:-}" ] ||
                .venv/bin/python -c 'from regards_nb.simulator import find_installation; find_installation()' 2>/dev/null ;;
        python3-venv) return 1 ;;
        # the browser tests' driver needs it; where ldconfig is not, neither is apt
        libatomic1) ldconfig -p 2>/dev/null | grep -q libatomic.so.1 ;;
        # Debian keeps the server's programs out of the path
        postgresql)
            command -v postgres >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 ;;
        # apache2-bin is the server alone, without a service that starts on port 80
        nginx-light) on_path nginx ;;
        apache2-bin) on_path apache2 ;;
        varnish) on_path varnishd ;;
        # where it is no package of its own, the whole browser does as well
        chromium-headless-shell)
            on_path chromium-headless-shell || [ -n "${CHROMIUM:-}" ] ||
                { on_path chromium && ! apt-cache show chromium-headless-shell >/dev/null 2>&1; } ;;
        *) on_path "$1" ;;
    esac
}

missing=
for package in "$@"; do
    present "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        as_root=sudo
    else
        echo "Missing:$missing. Install with:  sudo apt-get install$missing" >&2
        exit 1
    fi
    # another need.sh may run at the same time, and apt-get would not wait for it
    mkdir -p build
    exec 9>build/apt.lock
    flock 9
    echo "Installing$missing with apt-get ..."
    $as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list of package names
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
elif command -v brew >/dev/null 2>&1; then
    echo "Missing:$missing. Install with:  brew install$(echo "$missing" | sed 's/-server//; s/-headless-shell//')" >&2
    exit 1
else
    echo "Missing:$missing. Install with:  conda install -c conda-forge$missing" >&2
    exit 1
fi
