#!/bin/sh
# After an installation or an upgrade. Nothing is started: choose one of the two units.
set -e
if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers gatepost.conf
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl try-restart --no-block gatepost.service gatepost-run.service
fi
