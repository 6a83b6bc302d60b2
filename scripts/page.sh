#!/usr/bin/env bash
# The page of the server: its sources, its tests in Chromium against scripted personas, and the main journeys against a real server.
#
# Needs: Node.js 20 or newer with npm, a Chromium (Debian's package is installed when there is none; CHROMIUM names another),
# and the command: CONSORT names it, else it is built.
set -euo pipefail
cd "$(dirname "$0")/.."

install_chromium() {
    if command -v "${CHROMIUM:-/usr/bin/chromium}" >/dev/null; then
        return
    fi
    echo "installing chromium with apt-get"
    local as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -q && "${as_root[@]}" apt-get install -y -q --no-install-recommends chromium
}

command -v npm >/dev/null || {
    echo "the page's tests need Node.js 20 or newer with npm (apt-get install -y nodejs npm)" >&2
    exit 1
}
install_chromium
if [ -z "${CONSORT:-}" ]; then
    cargo build --locked --bin consort
    CONSORT=${CARGO_TARGET_DIR:-target}/debug/consort
fi
CONSORT=$(realpath "$CONSORT")
export CONSORT
cd crates/server/page
npm ci --ignore-scripts --no-audit --no-fund
npm run check
npm test
npm run test:real
