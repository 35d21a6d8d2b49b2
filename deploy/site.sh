#!/usr/bin/env bash
# A site of a federation: a SuperNode that trains on the data which SITE_YAML names.
#
#   deploy/site.sh SUPERLINK NUMBER SITE_YAML KEY [PORT [FLAGS...]]
#
# SUPERLINK is HOST:PORT, NUMBER the client that this site is, KEY its private key, with the authority's ca.crt beside it.
# PORT, of this machine alone, is free for each site on it. FLAGS are those of flower-supernode.
set -euo pipefail
usage="usage: $0 SUPERLINK NUMBER SITE_YAML KEY [PORT [FLAGS...]]"
superlink=${1:?"$usage"} number=${2:?"$usage"} site=$(realpath "${3:?"$usage"}") key=${4:?"$usage"} port=${5:-9094}
shift $(($# < 5 ? $# : 5))
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
exec flower-supernode --superlink "$superlink" --root-certificates "$(dirname "$key")/ca.crt" --host 127.0.0.1 --port "$port" \
    --auth-supernode-private-key "$key" --node-config "partition-id=$number site='$site'" "$@"
