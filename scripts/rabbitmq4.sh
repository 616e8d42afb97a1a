#!/bin/sh
# Unpack RabbitMQ 4 of Debian 13 into build/rabbitmq-4, once: some tests run on it. Nothing is installed, and
# root is not needed: the programs run on Debian 13's own C library, beside whatever this machine has.
# usage: rabbitmq4.sh
set -eu
built=build/rabbitmq-4

[ ! -d "$built" ] || exit 0
# brew installs RabbitMQ 4 itself
command -v apt-get >/dev/null 2>&1 || exit 0
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
if [ ! -e "$keyring" ]; then
    echo "RabbitMQ 4 for the tests needs Debian's keys. Install with:  sudo apt-get install debian-archive-keyring" >&2
    exit 1
fi

echo "Unpacking RabbitMQ 4 of Debian 13 into $built ..."
mkdir -p build
new=$(mktemp -d "$PWD/build/rabbitmq-4.XXXXXX")
trap 'rm -rf "$new"' EXIT
mkdir -p "$new/apt/lists/partial" "$new/apt/archives/partial"

# an apt of its own, which knows nothing of what is installed
: >"$new/apt/status"
echo "deb [signed-by=$keyring] http://deb.debian.org/debian trixie main" >"$new/apt/sources.list"
cat >"$new/apt/apt.conf" <<CONF
Dir::State "$new/apt/";
Dir::State::status "$new/apt/status";
Dir::Cache "$new/apt/";
Dir::Etc::SourceList "$new/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
APT::Install-Recommends "false";
CONF
[ "$(id -u)" != 0 ] || echo 'APT::Sandbox::User "root";' >>"$new/apt/apt.conf"
export APT_CONFIG="$new/apt/apt.conf"
apt-get -qq update
apt-get -qq install --download-only -y rabbitmq-server
for package in rabbitmq-server erlang lib zlib1g; do
    for file in "$new/apt/archives/$package"*.deb; do
        dpkg-deb --extract "$file" "$new"
    done
done
rm -r "$new/apt"
home=$(echo "$new"/usr/lib/rabbitmq/lib/rabbitmq_server-4.*)
if [ ! -d "$home" ]; then
    echo "Debian 13 has another RabbitMQ than 4, which tests/test_rabbitmq4.py needs." >&2
    exit 1
fi

# The simulator looks for Erlang beside the server. Erlang's own script names /usr/lib/erlang.
mkdir "$home/bin"
ln -s ../../../../erlang/bin/erl ../../../../erlang/bin/escript ../../../../erlang/bin/epmd "$home/bin"
final=$PWD/$built
sed -i "s|ROOTDIR=/usr/lib/erlang|ROOTDIR='$final/usr/lib/erlang'|" "$new/usr/lib/erlang/bin/erl"
# Each program of Erlang is started by the loader of Debian 13, which finds the libraries of Debian 13.
libraries=$(dirname "$(find "$new/usr/lib" -name libc.so.6)")
loader=$(find "$libraries" -name 'ld-linux-*.so.*')
find "$new/usr/lib/erlang" -type f -perm -100 | while read -r program; do
    [ "$(head -c 4 "$program" | tail -c 3)" = ELF ] || continue
    mv "$program" "$program.elf"
    printf '#!/bin/sh\nexec "%s" --library-path "%s" --argv0 "$0" "%s" "$@"\n' \
        "$final${loader#"$new"}" "$final${libraries#"$new"}" "$final${program#"$new"}.elf" >"$program"
    chmod 755 "$program"
done
mv "$new" "$built"
