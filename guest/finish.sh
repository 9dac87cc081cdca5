#!/bin/sh
# Ends a recipe in the root at $1: what is of the build alone goes. The last call of each recipe's
# customize.sh.
set -eu
root=$1
here=$(cd "$(dirname "$0")" && pwd)

# The VM's own apt asks Debian, not the mirror of the machine that built the image.
. "$root/usr/lib/os-release"
if [ "$ID" = debian ]; then
    rm -f "$root/etc/apt/sources.list" "$root"/etc/apt/sources.list.d/*
    sed "s/@SUITE@/$VERSION_CODENAME/g" "$here/debian.sources" \
        > "$root/etc/apt/sources.list.d/debian.sources"
fi

# mmdebstrap itself clears apt's lists and cache, /run and /tmp. Nobody else may: its apt is
# configured by a file in there, and without that would work on the machine that builds the image.
rm -rf "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old \
    "$root"/var/log/*.log "$root"/var/log/apt
