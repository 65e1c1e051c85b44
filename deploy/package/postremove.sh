#!/bin/sh
# After a removal. dpkg calls this with "purge" if the data shall go too: sessions, and the last good definitions.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
if [ "${1:-}" = purge ]; then
	rm -rf /var/lib/gatepost
fi
