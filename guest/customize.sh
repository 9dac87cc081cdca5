#!/bin/sh
# Turns the fresh Debian root at $1 into the default image. Runs as (namespaced) root, from the
# directory of this script, once all packages are installed.
set -eu
root=$1
here=$(cd "$(dirname "$0")" && pwd)

# In place of what is there: Debian 13 has links that lead nowhere yet.
cp -RT --remove-destination --no-preserve=ownership,timestamps "$here/overlay" "$root"
chmod 0440 "$root/etc/sudoers.d/90-ubuntu"

chroot "$root" useradd --create-home --uid 1000 --user-group --shell /bin/bash \
    --groups sudo,adm,systemd-journal ubuntu

# What must differ between VMs is made by each of them: ids, keys, names, addresses.
rm -f "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus/machine-id" "$root/etc/resolv.conf"
: > "$root/etc/machine-id"
: > "$root/etc/resolv.conf"
echo sandbox > "$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' > "$root/etc/hosts"

# The agent mounts the root before systemd starts, so there is nothing to list.
: > "$root/etc/fstab"
# Debian's link makes this directory look configured, which costs a process at every boot.
rm -f "$root/etc/modules-load.d/modules.conf"

chroot "$root" systemctl --quiet set-default multi-user.target
chroot "$root" systemctl --quiet disable ssh.service
chroot "$root" systemctl --quiet enable ssh.socket

# lean.txt: what does not start at boot. A null link masks the want, or the generator, and leaves
# the unit itself for whoever starts it by hand or needs it.
while read -r what name; do
    case $what in
    '' | '#'*) continue ;;
    generator) link=etc/systemd/system-generators/$name ;;
    tmpfiles) link=etc/tmpfiles.d/$name ;;
    *.target) link=etc/systemd/system/$what.wants/$name ;;
    *) echo "lean.txt: don't know what $what is" >&2; exit 1 ;;
    esac
    mkdir -p "$root/$(dirname "$link")"
    ln -sfn /dev/null "$root/$link"
done < "$here/lean.txt"

"$here/finish.sh" "$root"
