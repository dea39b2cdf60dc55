#!/bin/sh
# The tests on Mesa's software GPU, in CI. A machine that has not what they need, and cannot get it, says so and goes on.
# With GPU_TESTS_NEEDED=1 they are promised, and then it fails.
cd "$(dirname "$0")/.." || exit 1

not_run() {
    echo "NOT RUN: the tests on a software GPU. $1" >&2
    [ "${GPU_TESTS_NEEDED-}" = 1 ] || exit 0
    echo "They are promised here (GPU_TESTS_NEEDED=1), so this is a failure." >&2
    exit 1
}

get() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    export DEBIAN_FRONTEND=noninteractive
    timeout 120 apt-get update -qq >/dev/null 2>&1
    # shellcheck disable=SC2086
    timeout 300 apt-get install -y -qq --no-install-recommends $1 >/dev/null 2>&1
}

missing=$(sh tools/check_vulkan.sh 2>&1) || get "${missing##*install }"
missing=$(sh tools/check_vulkan.sh 2>&1) || not_run "$missing"
headers=$(timeout 300 make --no-print-directory vulkan-headers 2>&1) || not_run "Vulkan's headers: $headers"
exec make test-gpu
