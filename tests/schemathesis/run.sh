#!/usr/bin/env bash
# Sends requests of every kind to a real `consort serve`, made from the server's own description: fields missing, wrong, huge,
# nested, not UTF-8. No answer may be a defect (500), none may stand outside of the description, and none may take long.
#
# Needs Python 3.10 or newer with venv, and a package index for schemathesis. Everything else is thrown away at the end.
#   bash tests/schemathesis/run.sh [PATH OF consort] [SECONDS, 120 if not given] [SEED, 1 if not given]
set -euo pipefail
cd "$(dirname "$0")/../.."

here=$PWD
consort=${1:-target/debug/consort}
seconds=${2:-120}
seed=${3:-1}
folder=$(mktemp -d)
server=
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$folder"
}
trap cleanup EXIT

if [ -z "${SCHEMATHESIS:-}" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --requirement tests/schemathesis/requirements.txt
    SCHEMATHESIS=$folder/venv/bin/schemathesis
fi

export CONSORT_API_KEY=a-key-for-this-run
"$consort" serve --print-openapi >"$folder/openapi.json"
"$consort" serve --device cpu --config tests/schemathesis/consort.toml >"$folder/out" 2>"$folder/log" &
server=$!
address=
for _ in $(seq 300); do
    address=$(sed -n 's|^listening on ||p' "$folder/out")
    [ -z "$address" ] || break
    sleep 0.1
done
[ -n "$address" ] || { cat "$folder/log"; exit 1; }

# It keeps what it found beside where it runs.
cd "$folder"
verdict=0
timeout "$((seconds + 120))" "$SCHEMATHESIS" --config-file "$here/tests/schemathesis/schemathesis.toml" run "$folder/openapi.json" \
    --url "$address" --header "Authorization: Bearer $CONSORT_API_KEY" \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance \
    --phases examples,coverage,fuzzing --mode all --max-time "$seconds" --max-examples 200 --seed "$seed" \
    --request-timeout 30 --max-response-time 30 --suppress-health-check all --warnings off --continue-on-failure \
    --generation-database none || verdict=$?

# Whatever was sent, the server lives, and knows of no defect of its own.
curl --silent --fail --max-time 10 "$address/ready" >/dev/null || { echo "the server is not ready any more" >&2; verdict=1; }
if grep -E 'panicked|"?level"?.*ERROR|^\S+ +ERROR' "$folder/log" | grep -v 'nothing was reloaded' >"$folder/errors"; then
    echo "the server's log has errors:" >&2
    head -20 "$folder/errors" >&2
    verdict=1
fi
kill -TERM "$server"
wait "$server" || { echo "the server did not end well" >&2; verdict=1; }
server=
exit "$verdict"
