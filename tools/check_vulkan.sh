#!/bin/sh
# What compiling llama.cpp for Vulkan and running it on Mesa's software GPU need beside the headers, with the way to get it.
# PREFIX is another root of the file system, for tests.
missing=
command -v glslc >/dev/null || missing="$missing glslc"
ls "${PREFIX-}"/usr/lib/*-linux-gnu/libvulkan.so.1 >/dev/null 2>&1 || missing="$missing libvulkan1"
ls "${PREFIX-}"/usr/share/vulkan/icd.d/*.json >/dev/null 2>&1 || missing="$missing mesa-vulkan-drivers"
[ -z "$missing" ] && exit 0
echo "missing for tests on a GPU:$missing; run: apt-get install$missing" >&2
exit 1
