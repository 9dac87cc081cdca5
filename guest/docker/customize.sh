#!/bin/sh
# Turns the default image's root at $1 into the image with Docker, once its packages are installed.
set -eu
root=$1
here=$(cd "$(dirname "$0")" && pwd)

# The default user needs no sudo for Docker. Containers with a restart policy come back at boot
# because the service, not just its socket, is enabled; no user waits for either.
chroot "$root" usermod --append --groups docker ubuntu
chroot "$root" systemctl --quiet enable docker.service docker.socket

# dockerd loads the one profile it needs by itself; loading all others holds up all of the boot.
chroot "$root" systemctl --quiet disable apparmor.service

"$here/../finish.sh" "$root"
