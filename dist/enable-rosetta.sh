#!/bin/bash
# Has a VM with `rosetta: true` on an Apple silicon Mac run programs for x86-64. In the VM, as root or
# by way of sudo:
#
#   slicer vm cp enable-rosetta.sh slicer-1:/tmp/
#   slicer vm exec slicer-1 -- bash /tmp/enable-rosetta.sh
#
# It may be run again, and lasts across boots.
set -euo pipefail

share=rosetta
dir=/media/rosetta
interpreter=$dir/rosetta
# ELF, 64 bits, little-endian, executable or shared, for x86-64; see binfmt_misc in the kernel's
# documentation. C: with the credentials of the program; F: opened once, so that it works in chroots.
rule=':rosetta:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00:\xff\xff\xff\xff\xff\xfe\xfe\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:'$interpreter':CF'

if [ "$(id -u)" != 0 ]; then
	exec sudo bash "$0" "$@"
fi
if [ "$(uname -m)" != aarch64 ]; then
	echo "This VM is $(uname -m): Rosetta is for aarch64" >&2
	exit 1
fi

mkdir -p "$dir"
if ! mountpoint -q "$dir" && ! mount -t virtiofs "$share" "$dir"; then
	echo "This VM has no Rosetta share: set rosetta: true for its host group and restart the daemon" >&2
	exit 1
fi
if ! grep -q "^$share $dir " /etc/fstab 2>/dev/null; then
	echo "$share $dir virtiofs ro,nofail,x-systemd.before=systemd-binfmt.service 0 0" >>/etc/fstab
fi

binfmt=/proc/sys/fs/binfmt_misc
modprobe binfmt_misc 2>/dev/null || true
[ -e $binfmt/register ] || mount -t binfmt_misc binfmt_misc $binfmt
[ ! -e $binfmt/rosetta ] || echo -1 >$binfmt/rosetta
printf '%s\n' "$rule" >$binfmt/register
mkdir -p /etc/binfmt.d
printf '%s\n' "$rule" >/etc/binfmt.d/rosetta.conf
echo "Programs for x86-64 run by Rosetta now"
