#!/usr/bin/env bash
# Runs every fuzzer in turn, SECONDS each (600 when nothing is said), and fails at the end if one found something.
#
#   scripts/fuzz.sh [SECONDS] [TARGET...]
#
# Needs a nightly toolchain (`rustup toolchain install nightly`) and a C++ compiler; `cargo-fuzz` is installed from
# crates.io when it is missing. See fuzz/README.md.
set -uo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-600}
shift || true
if [ $# -gt 0 ]; then targets=("$@"); else mapfile -t targets < <(cargo +nightly fuzz list); fi

cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --version 0.13.2 --locked || exit 1

# The most memory, in MiB, that a target may take: what it must keep within, and room for the sanitizer and the corpus.
memory() {
    case $1 in
        template) echo 2048 ;;
        *) echo 1024 ;;
    esac
}

failed=()
for target in "${targets[@]}"; do
    mkdir -p "fuzz/found/$target" "fuzz/artifacts/$target"
    cargo +nightly fuzz build --sanitizer address "$target" || exit 1
    options=(-max_total_time="$seconds" -timeout=20 -rss_limit_mb="$(memory "$target")" -max_len=16384 -print_final_stats=1)
    [ -f "fuzz/dictionaries/$target.txt" ] && options+=(-dict="fuzz/dictionaries/$target.txt")
    # New inputs go to the first folder, which is not committed; the seeds are in the second.
    log=fuzz/artifacts/$target/log.txt
    cargo +nightly fuzz run --sanitizer address "$target" "fuzz/found/$target" "fuzz/corpus/$target" -- "${options[@]}" \
        >"$log" 2>&1
    status=$?
    covered=$(grep -oE 'cov: [0-9]+ ft: [0-9]+' "$log" | tail -1)
    executions=$(grep -oE 'number_of_executed_units: *[0-9]+' "$log" | grep -oE '[0-9]+$')
    printf '%-10s %10s executions, %s, exit %d\n' "$target" "${executions:-?}" "${covered:-no coverage}" "$status"
    if [ "$status" -ne 0 ]; then
        failed+=("$target")
        grep -E 'panicked|ERROR|SUMMARY|Test unit written' "$log" | tail -5
    fi
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "findings: ${failed[*]} (inputs in fuzz/artifacts/)"
    exit 1
fi
