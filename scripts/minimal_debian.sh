#!/bin/sh
# The README's commands on a new machine: a Debian with nothing but Python, venv, make and certificates, a user
# without rights, and a clone of the last commit.
#
#     scripts/minimal_debian.sh arithmetic test          make arithmetic test
#     scripts/minimal_debian.sh test ARGS=tests/unit     make test ARGS=tests/unit
#     scripts/minimal_debian.sh remove
#
# Needs root, debootstrap and unshare; in $GFN_DEBIAN, /tmp/gfn_debian where that is not set. The system is kept,
# the clone and its environment are made anew each time. BIND: folders of this machine that are seen there too, such
# as one with wheels. Names of hosts, certificates and settings of pip are this machine's.
set -eu

home=${GFN_DEBIAN:-/tmp/gfn_debian}
suite=bookworm
packages=python3,python3-venv,make,ca-certificates
repository=$(cd "$(dirname "$0")/.." && pwd)
root=$home/$suite
user=1000

fail() { echo "minimal_debian: $*" >&2; exit 1; }

make_system() {
    [ -e "$root/.complete" ] && return
    rm -rf "$root"
    mkdir -p "$root"
    debootstrap --variant=minbase --include="$packages" "$suite" "$root" >"$home/debootstrap.log" 2>&1 ||
        fail "debootstrap failed: $home/debootstrap.log"
    echo "someone:x:$user:$user::/home/someone:/bin/sh" >>"$root/etc/passwd"
    touch "$root/.complete"
}

settings_of_this_machine() {
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    if [ -e /etc/pip.conf ]; then cp /etc/pip.conf "$root/etc/"; fi
    if [ -e "$HOME/.config/pip/pip.conf" ]; then
        mkdir -p "$root/home/someone/.config/pip"
        cp "$HOME/.config/pip/pip.conf" "$root/home/someone/.config/pip/"
    fi
}

# In namespaces of its own: mounts and processes end with it.
run_there() {
    BIND=${BIND:-} root=$root user=$user unshare --mount --pid --fork --kill-child sh -eu -c '
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        for folder in $BIND; do
            mkdir -p "$root$folder"
            mount --bind "$folder" "$root$folder"
        done
        exec chroot --userspec="$user:$user" "$root" /usr/bin/env -i HOME=/home/someone LANG=C.UTF-8 \
            PATH=/usr/bin:/bin sh -c "cd ~/gfn_runner && exec make \"\$@\"" make "$@"
    ' sh "$@"
}

[ $# -gt 0 ] || fail "which make target? ($0 arithmetic)"
[ "$(id -u)" = 0 ] || fail "needs root, for debootstrap and chroot"
if [ "$1" = remove ]; then
    rm -rf --one-file-system "$home"
    exit
fi
for command in debootstrap unshare git; do
    command -v "$command" >/dev/null || fail "$command is missing"
done
make_system
rm -rf --one-file-system "$root/home/someone"
mkdir -p "$root/home/someone"
settings_of_this_machine
git clone --quiet --no-hardlinks "$repository" "$root/home/someone/gfn_runner"
chown -R "$user:$user" "$root/home/someone"
run_there "$@"
