#!/usr/bin/env bash
# llama.cpp's engine through Vulkan, on a driver that computes on the processor (Mesa's lavapipe): builds it, shows that it is
# refused unless it is named, and holds it against goldens of the engine suite. For Debian and its kin; about half an hour on two cores, most of
# it for the library's shaders.
#
# Arguments go to the suite: `scripts/vulkan.sh golden` runs the cases with `golden` in their names.
#
# Installed by apt-get, each when it is missing: the driver and the loader, a shader compiler, and what llama.cpp needs anyway.
# The library wants headers of Vulkan 1.4. Where the system's are older, those of Debian's next release are unpacked below
# `target`, and nothing of them is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
headers=$PWD/target/vulkan-headers
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/vulkan}

as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
missing=()
for package in cmake clang libclang-dev ccache glslc libvulkan-dev mesa-vulkan-drivers vulkan-tools spirv-headers; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -ne 0 ]; then
    echo "installing ${missing[*]} with apt-get"
    "${as_root[@]}" apt-get update -q
    "${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}"
fi

# The loader is the system's; only headers are newer.
unpack_newer_headers() {
    local work list archive
    work=$(mktemp -d)
    archive=$(apt-cache policy | grep -oE 'https?://[^ ]+/debian' | head -n 1)
    list=$work/next.list
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${archive:?no Debian archive is configured} trixie main" >"$list"
    local from=(-o Dir::Etc::SourceList="$list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$work/lists"
        -o APT::Sandbox::User=root)
    mkdir -p "$work/lists" "$work/files" "$headers/lib"
    apt-get "${from[@]}" update -q
    (cd "$work/files" && apt-get "${from[@]}" download -q libvulkan-dev spirv-headers)
    for package in "$work"/files/*.deb; do dpkg -x "$package" "$headers/unpacked"; done
    ln -sfn unpacked/usr/include "$headers/include"
    ln -sfn unpacked/usr/share "$headers/share"
    ln -sfn "$(ldconfig -p | awk '/libvulkan\.so\.1 / { print $NF; exit }')" "$headers/lib/libvulkan.so"
    rm -rf "$work"
}
if ! pkg-config --atleast-version=1.4 vulkan 2>/dev/null; then
    [ -e "$headers/include/vulkan/vulkan.hpp" ] || unpack_newer_headers
    export VULKAN_SDK=$headers
    echo "headers of Vulkan: $headers"
fi

# The library leaves drivers in software out unless it is told which to see.
export GGML_VK_VISIBLE_DEVICES=0
# In half precision, which the driver offers, logits leave the tolerance of exact weights.
export GGML_VK_DISABLE_F16=1
# Its crash reports would attach a debugger to whoever tests crashes on purpose.
export GGML_NO_BACKTRACE=1
vulkaninfo --summary 2>/dev/null | grep -E 'deviceName|driverName|apiVersion' || true

echo "== it is refused unless it is named"
run=(cargo run --locked -q -p consort --features vulkan --)
if refusal=$("${run[@]}" run --backend llamacpp --max-tokens 4 "Hello!" 2>&1); then
    echo "a driver in software was taken for an accelerator: $refusal" >&2
    exit 1
fi
echo "$refusal"
grep -q vulkan-software <<<"$refusal"

echo "== the suite"
cargo test --locked -p consort-behavior --features vulkan --test vulkan -- "$@"
