#!/bin/sh
# In a fresh root of Debian, as root: builds the package, installs it, uses it, removes it. Run by test_deb.py through tools/debian13.
set -eu
export DEBIAN_FRONTEND=noninteractive

step() { echo "== $*"; }
apt() { apt-get -qq -o Dpkg::Use-Pty=0 -o APT::Install-Recommends=false -y "$@" >/dev/null; }
fails() { if "$@"; then echo "should have failed: $*"; exit 1; fi; }
within() { # SECONDS COMMAND...: waits for it to succeed
    end=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$end" ] || { echo "did not come: $*"; exit 1; }
        sleep 0.1
    done
}
gone() { ! grep -lsaE '[b]lockmap|[n]bdkit|[n]bdfuse|[r]edis-server' /proc/[0-9]*/cmdline; }

step "build"
apt-get -qq update
apt install python3-venv mmdebstrap
tools/deb /tmp
package=$(echo /tmp/blockmap_*.deb)
tools/sample-image /tmp/image
before=$(mktemp)
find / -xdev -name '*blockmap*' -not -path '/checkout*' -not -path '/tmp/*' -not -path '/root/.cache/*' | sort >"$before"

step "install"
apt install "$package"
blockmap --version
getent group blockmap
test "$(stat -c '%U:%G %a' /etc/blockmap.toml)" = "root:blockmap 640"
test -s /usr/share/man/man1/blockmap-run.1.gz
grep -q blockmap /usr/share/bash-completion/completions/blockmap
test -z "$(dpkg --verify blockmap)"

step "settings, also where the environment is lost"
cat >>/etc/blockmap.toml <<'END'
store = "/srv/blockmap"
[environment]
AWS_REGION = "a"
END
env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin blockmap config
blockmap create
blockmap import oci:/tmp/image:latest try:latest

step "serve, run, attach"
blockmap serve 2>/tmp/serve.log &
server=$!
within 30 test -S /run/blockmap/nbd.sock
env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin blockmap run --entrypoint /usr/local/bin/answer try:latest | grep -q PONG
mkdir /mnt/image
env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin blockmap attach try:latest /mnt/image
test -x /mnt/image/usr/bin/redis-server

step "the plugin alone"
PATH=/usr/lib/blockmap/bin:$PATH nbdkit -U - python /usr/lib/blockmap/plugin.py store=/srv/blockmap cache=/tmp/cache \
    --run 'nbdinfo "nbd+unix:///try:latest?socket=$unixsocket"' | grep -q 'export="try:latest"'

step "installed again"
apt install --reinstall "$package"
test -x /mnt/image/usr/bin/redis-server
test -z "$(dpkg --verify blockmap | grep -v /etc/blockmap.toml)"

step "units"
apt install systemd
systemd-analyze --man=no verify blockmap.service blockmap-devices.service blockmap-attach@srv-redis.service

step "remove, with all in use"
blockmap run -d --name web try:latest
apt remove blockmap
fails mountpoint -q /mnt/image
wait "$server"
within 90 gone  # what attaches for all commands ends a minute after the last device
test -e /etc/blockmap.toml
fails test -e /usr/lib/blockmap

step "purge"
apt purge blockmap
fails getent group blockmap
find / -xdev -name '*blockmap*' -not -path '/checkout*' -not -path '/tmp/*' -not -path '/root/.cache/*' -not -path '/srv/blockmap*' |
    sort | comm -13 "$before" - >/tmp/left
cat /tmp/left
test ! -s /tmp/left

step "passed"
