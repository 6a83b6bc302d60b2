#!/usr/bin/env bash
# Runs the official clients for Python and Node against `consort serve`, on loopback, with the bundled model; three personas at once; and
# 200 sampled replies against their schemas.
#
# Needs Python 3.10 or newer with venv, Node 20 or newer with npm, and the two package registries. What is installed goes
# into a folder that is thrown away at the end.
#   bash tests/clients/run.sh [PATH OF consort [OPTION OF serve…]]
#
# With options, these say where the model is computed, and not `--device cpu`. CONSORT_REMOTE=vllm says that a vLLM computes it, as
# `scripts/vllm.sh clients` does: what vLLM does not do must then be refused by name, and is told as such.
set -euo pipefail
cd "$(dirname "$0")/../.."

consort=${1:-target/debug/consort}
[ $# -eq 0 ] || shift
options=(--device cpu)
[ $# -eq 0 ] || options=("$@")
root=$PWD
folder=$(mktemp -d)
server=
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$folder"
}
trap cleanup EXIT
began=$SECONDS

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --requirement tests/clients/requirements.txt
mkdir "$folder/node"
cp tests/clients/package.json tests/clients/package-lock.json tests/clients/*.mjs "$folder/node/"
(cd "$folder/node" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null)
echo "installed in $((SECONDS - began)) s"

export CONSORT_API_KEY=a-key-for-this-run
"$consort" serve "${options[@]}" --config tests/clients/consort.toml >"$folder/out" 2>"$folder/log" &
server=$!
address=
for _ in $(seq 300); do
    address=$(sed -n 's|^listening on ||p' "$folder/out")
    [ -z "$address" ] || break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
done
[ -n "$address" ] || { cat "$folder/log"; exit 1; }

python="$folder/venv/bin/python"
{
    "$python" tests/clients/openai_client.py "$address/v1"
    "$python" tests/clients/anthropic_client.py "$address"
    (cd "$folder/node" && node openai_client.mjs "$address" "$root")
    (cd "$folder/node" && node anthropic_client.mjs "$address" "$root")
    "$python" tests/clients/personas.py "$address"
    "$python" tests/clients/schemas.py "$address"
} | tee "$folder/told"

kill -TERM "$server"
wait "$server"
server=
checks=0
while read -r count; do checks=$((checks + count)); done < <(sed -n 's/.*: \([0-9]*\) checks passed$/\1/p' "$folder/told")
refused=$(grep -c '^not by vLLM, and refused: ' "$folder/told" || true)
# Much was refused on purpose, and none of it is a defect of the server's.
if grep -E ' status=5|ERROR' "$folder/log"; then
    exit 1
fi
echo "clients: $checks checks passed, $refused things refused that vLLM does not do, in $((SECONDS - began)) s"
