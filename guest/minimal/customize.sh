#!/bin/sh
# Turns the fresh Debian root at $1, which has no init, into the image of it.
set -eu
root=$1
here=$(cd "$(dirname "$0")" && pwd)

chroot "$root" useradd --create-home --uid 1000 --user-group --shell /bin/bash debian
rm -f "$root/etc/resolv.conf" "$root/etc/machine-id"

"$here/../finish.sh" "$root"
