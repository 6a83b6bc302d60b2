#!/usr/bin/env bash
# Runs the official clients against `consort serve`, on loopback, with the bundled model.
#
# Needs Python 3.10 or newer with venv, and a package index for the client itself. Everything else is thrown away at the end.
#   bash tests/clients/run.sh [PATH OF consort]
set -euo pipefail
cd "$(dirname "$0")/../.."

consort=${1:-target/debug/consort}
folder=$(mktemp -d)
server=
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$folder"
}
trap cleanup EXIT

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --requirement tests/clients/requirements.txt

export CONSORT_API_KEY=a-key-for-this-run
"$consort" serve --device cpu --config tests/clients/consort.toml >"$folder/out" 2>"$folder/log" &
server=$!
for _ in $(seq 100); do
    address=$(sed -n 's|^listening on ||p' "$folder/out")
    [ -z "$address" ] || break
    sleep 0.1
done
[ -n "$address" ] || { cat "$folder/log"; exit 1; }

"$folder/venv/bin/python" tests/clients/openai_client.py "$address/v1"
kill -TERM "$server"
wait "$server"
server=
