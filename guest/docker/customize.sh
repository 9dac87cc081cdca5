#!/bin/sh
# Turns the default image's root at $1 into the image with Docker. Runs after the default image's
# own script.
set -eu
root=$1

# The default user needs no sudo for Docker. Containers with a restart policy come back at boot
# because the service, not just its socket, is enabled; no user waits for either.
chroot "$root" usermod --append --groups docker ubuntu
chroot "$root" systemctl --quiet enable docker.service docker.socket

rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/run/* "$root"/tmp/*
