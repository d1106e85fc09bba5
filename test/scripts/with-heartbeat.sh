#!/usr/bin/env bash
# Runs a command that says nothing for minutes, and says every 15 s that it still
# runs:
#
#   with-heartbeat.sh NAME COMMAND [ARG…]
set -euo pipefail
name=$1
shift

"$@" &
work=$!
trap 'kill "$work" 2>/dev/null || true' EXIT
next=15
while kill -0 "$work" 2>/dev/null; do
	sleep 1
	if ((SECONDS >= next)); then
		echo "$name: still running after ${SECONDS} s"
		next=$((SECONDS + 15))
	fi
done
wait "$work"
