#!/usr/bin/env bash
# Everything that must hold before a change lands, one stage after another, with the time of each.
#
# Needs: Rust, and nothing else that is not installed here: `cargo-deny` from crates.io, and what llama.cpp's engine is built with
# (cmake, clang, ccache) and the server's clients (Node.js, npm, Python's venv, Chromium) from Debian's packages, each when it is
# missing. The clients themselves come from PyPI and npm into folders that are thrown away.
# The cases of the family's real vocabulary and chat template run when CONSORT_FAMILY_DATA names the folder that holds
# them; without it the tests print how many cases were not run.
set -euo pipefail
cd "$(dirname "$0")/.."

deny_version=0.20.2
# What only the next build by hand would gain from is half of a target folder. A variable that is set already wins.
export CARGO_INCREMENTAL=${CARGO_INCREMENTAL:-0}
log_dir=$(mktemp -d)
trap 'rm -rf "$log_dir"' EXIT
summary=()

stage() {
    local name=$1 start=$SECONDS
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    if "$@" 2>&1 | tee "$log_dir/$name.log"; then
        summary+=("$(printf '%-12s ok      %5d s' "$name" $((SECONDS - start)))")
    else
        summary+=("$(printf '%-12s FAILED  %5d s' "$name" $((SECONDS - start)))")
        finish 1
    fi
}

# Linkers and servers say of a full disk that they were killed.
tell_of_disk() {
    local target=${CARGO_TARGET_DIR:-target} free
    mkdir -p "$target"
    free=$(df -Pk "$target" | awk 'NR == 2 { print int($4 / 1024) }')
    echo "disk: $free MiB free for $target, of which a build from nothing takes about 8 GB"
    if [ "$free" -lt 1024 ]; then
        echo "disk: THIS IS TOO LITTLE; make room, or name another place by CARGO_TARGET_DIR"
    fi
}

# Adds up the closing lines of libtest and libtest-mimic.
finish() {
    [ "$1" -eq 0 ] || tell_of_disk
    printf '\n== stages\n'
    printf '%s\n' "${summary[@]}"
    local passed failed
    read -r passed failed < <(cat "$log_dir"/*.log | awk '
        /^test result:/ { for (i = 2; i <= NF; i++) { if ($i == "passed;") p += $(i - 1); if ($i == "failed;") f += $(i - 1) } }
        END { print p + 0, f + 0 }')
    printf '\n%d passed, %d failed\n' "$passed" "$failed"
    if [ "$1" -eq 0 ] && { [ "$passed" -eq 0 ] || [ "$failed" -ne 0 ]; }; then
        exit 1
    fi
    exit "$1"
}

# What llama.cpp's engine is compiled with, and what the server's clients run on. The default build needs none of it.
install_tools() {
    local missing=()
    command -v cmake >/dev/null || missing+=(cmake)
    command -v ccache >/dev/null || missing+=(ccache)
    # The binding generates its declarations with libclang and clang's headers.
    command -v clang >/dev/null && ldconfig -p 2>/dev/null | grep -q 'libclang[-.0-9]*so' || missing+=(clang libclang-dev)
    # The server is asked by clients of other languages, and its page is looked at.
    command -v npm >/dev/null || missing+=(nodejs npm)
    command -v "${CHROMIUM:-/usr/bin/chromium}" >/dev/null || missing+=(chromium)
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    if [ "$(uname)" != Linux ] || [ ${#missing[@]} -eq 0 ]; then
        return
    fi
    echo "installing ${missing[*]} with apt-get"
    local as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -q && "${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}"
}

install_cargo_deny() {
    if cargo deny --version 2>/dev/null; then
        return
    fi
    echo "installing cargo-deny $deny_version from crates.io (a few minutes, once)"
    CARGO_PROFILE_DEV_DEBUG=0 cargo install cargo-deny --version "$deny_version" --locked --debug
}

if [ -z "${CONSORT_FAMILY_DATA:-}" ]; then
    echo "CONSORT_FAMILY_DATA is not set: the cases of the family's vocabulary and template will be counted, not run"
fi

# A failed assertion of llama.cpp should end its test, and start no debugger.
export GGML_NO_BACKTRACE=1
# Every engine that this script can build, and what of the server is not in the default build.
features=consort/llamacpp,consort/otel,consort/vllm-grpc,consort-behavior/llamacpp,consort-behavior/vllm

tell_of_disk
stage fmt cargo fmt --all --check
stage tools install_tools
stage clippy cargo clippy --workspace --all-targets --features "$features" --locked -- -D warnings
stage test cargo test --workspace --features "$features" --locked --no-fail-fast
consort=${CARGO_TARGET_DIR:-target}/debug/consort
stage clients bash tests/clients/run.sh "$consort"
stage schemathesis bash tests/schemathesis/run.sh "$consort"
stage page env CONSORT="$consort" bash scripts/page.sh
stage doc env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --features "$features" --no-deps --locked
stage deny-tool install_cargo_deny
stage deny cargo deny --locked check licenses bans sources
stage demo cargo run --release --locked -- demo --device cpu
finish 0
