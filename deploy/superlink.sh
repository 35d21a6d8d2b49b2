#!/usr/bin/env bash
# The server of a federation: a SuperLink with TLS, which only sites with a registered key can join.
#
#   deploy/superlink.sh FOLDER [HOST [PORT [FLAGS...]]]
#
# FOLDER/keys is what `fedfault flower keys` has made; FOLDER/state.db is kept, so that a SuperLink which was killed goes on.
# FLAGS are those of flower-superlink.
set -euo pipefail
folder=${1:?"usage: $0 FOLDER [HOST [PORT [FLAGS...]]]"} host=${2:-0.0.0.0} port=${3:-9092}
shift $(($# < 3 ? $# : 3))
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
exec flower-superlink --host "$host" --port "$port" --database "$folder/state.db" --enable-supernode-auth \
    --ssl-certfile "$folder/keys/server.pem" --ssl-keyfile "$folder/keys/server.key" --ssl-ca-certfile "$folder/keys/ca.crt" \
    --disable-runtime-dependency-installation "$@" # it would install packages for every run
