#!/bin/sh
# Before a removal. dpkg calls this with "upgrade" and rpm with 1 before an upgrade: then the service goes on.
set -e
case ${1:-} in
upgrade | 1) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
	systemctl disable --now gatepost.service gatepost-run.service
fi
