#!/usr/bin/env bash
# Installs the Debian packages that the named tools come from, those that are
# missing, and touches nothing when all are there:
#
#   setup.sh postgres gcc shellcheck
set -euo pipefail

missing=()
for tool in "$@"; do
	case $tool in
	postgres) compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql) ;;
	mariadb)
		# The server alone, without the packages that start one.
		command -v mariadbd >/dev/null || [[ -x /usr/sbin/mariadbd ]] || missing+=(mariadb-server-core)
		command -v mariadb >/dev/null || missing+=(mariadb-client-core)
		;;
	awscli) [[ -x /usr/bin/aws ]] || missing+=(awscli) ;;
	cni) [[ -x /usr/lib/cni/ptp ]] || missing+=(containernetworking-plugins) ;;
	etcd) command -v etcd >/dev/null || missing+=(etcd-server) ;;
	busybox) command -v busybox >/dev/null || missing+=(busybox-static) ;;
	gcc) command -v gcc >/dev/null || missing+=(gcc libc6-dev) ;;
	*) command -v "$tool" >/dev/null || missing+=("$tool") ;;
	esac
done
if ((${#missing[@]} == 0)); then
	exit 0
fi

as_root=()
if ((EUID != 0)); then
	as_root=(sudo)
fi
install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends)
echo "setup: missing here: ${missing[*]}. They are installed with apt-get, which needs root${as_root:+ (sudo may ask for a password)}."
if ! command -v apt-get >/dev/null || { ((EUID != 0)) && ! command -v sudo >/dev/null; }; then
	echo "setup: apt-get, or sudo for it, is not there. Install the packages by hand and run this again." >&2
	exit 1
fi

# The tests run PostgreSQL's binaries on a directory of their own. A server on
# the machine's port 5432 is nothing that a test run should leave behind.
clusters=/etc/postgresql-common/createcluster.conf
if [[ " ${missing[*]} " == *" postgresql "* && ! -e $clusters ]]; then
	echo "setup: writing $clusters, so that PostgreSQL is installed without starting a server."
	"${as_root[@]}" mkdir -p "${clusters%/*}"
	echo 'create_main_cluster = false' | "${as_root[@]}" tee "$clusters" >/dev/null
	install+=(-o Dpkg::Options::=--force-confold)
fi
# The same goes for etcd and containerd: while this file is there, installing a
# package starts no service (invoke-rc.d(8)).
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
	"${as_root[@]}" install -m 0755 /dev/stdin "$policy" <<<$'#!/bin/sh\nexit 101'
	trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi
"${as_root[@]}" apt-get update -q
"${install[@]}" "${missing[@]}" </dev/null
