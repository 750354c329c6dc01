#!/bin/sh
# In a container that systemd has booted, as root: the units of the package, which is installed, and /etc/blockmaptab with one line.
# Run by test_deb.py; prints "== passed" at its end.
set -eu

step() { echo "== $*"; }
within() { # SECONDS COMMAND...: waits for it to succeed
    end=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$end" ] || {
            echo "did not come: $*"
            systemctl status --no-pager -l 'blockmap*' || :
            exit 1
        }
        sleep 0.1
    done
}
active() { systemctl --quiet is-active "$1"; }
is_another() { [ "$(systemctl show -p MainPID --value blockmap)" != "$1" ] && active blockmap; }

step "what is listed is attached with the start, by a server that the unit has started for it"
within 60 active blockmap-attach@srv-try
active blockmap
systemctl show -p StatusText --value blockmap | grep -q '^serving /srv/blockmap on /run/blockmap/nbd.sock$'
test -x /srv/try/usr/bin/redis-server

step "a supervisor that is killed comes back"
systemctl stop blockmap-attach@srv-try
test -z "$(ls /srv/try)"
pid=$(systemctl show -p MainPID --value blockmap)
kill -9 "$pid"
within 30 is_another "$pid"

step "the server starts while its store is away, and waits for a store that it has never seen"
mv /srv/blockmap /srv/away
systemctl restart blockmap
systemctl stop blockmap
rm -rf /var/cache/blockmap
systemctl start blockmap && exit 1
systemctl start --no-block blockmap-attach@srv-try
mv /srv/away /srv/blockmap
within 60 active blockmap
within 60 active blockmap-attach@srv-try
test -x /srv/try/usr/bin/redis-server

step "settings that make no sense are said once"
systemctl stop blockmap-attach@srv-try
cp -p /etc/blockmap.toml /root/settings
echo 'stroe = "/a"' >>/etc/blockmap.toml
systemctl restart blockmap && exit 1
within 10 systemctl --quiet is-failed blockmap
cp -p /root/settings /etc/blockmap.toml
systemctl restart blockmap
active blockmap

step "installed again, it is started anew; removed, nothing is left"
systemctl start blockmap-attach@srv-try
apt-get -qq -y install --reinstall /root/blockmap.deb >/dev/null
active blockmap
DEBIAN_FRONTEND=noninteractive apt-get -qq -y purge blockmap >/dev/null
test -z "$(systemctl --plain --no-legend --all list-units 'blockmap*')"
test -z "$(find / -xdev -name '*blockmap*' -not -path '/root/*' -not -path '/srv/*')"
test -z "$(pgrep -l 'nbd|blockmap')"
grep -e blockmap -e /srv/try /proc/mounts && exit 1

step "passed"
