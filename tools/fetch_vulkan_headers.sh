#!/usr/bin/env bash
# Vulkan's headers of Debian 13 in a folder of their own, for a Debian whose own are too old to compile llama.cpp against.
# usage: tools/fetch_vulkan_headers.sh FOLDER; they are then in FOLDER/usr/include. Nothing is installed.
set -eu
into=$(mkdir -p "$1" && cd "$1" && pwd)
[ -e "$into/usr/include/vulkan/vulkan.h" ] && [ -e "$into/usr/include/spirv" ] && exit 0
command -v apt-get >/dev/null || { echo "no apt-get: install Vulkan's headers by hand (docs/gpu.md)" >&2; exit 1; }
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{apt/partial,lists/partial,etc,debs}
mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources | head -1)
printf 'Types: deb\nURIs: %s\nSuites: trixie\nComponents: main\nSigned-By: %s\n' \
    "$mirror" /usr/share/keyrings/debian-archive-keyring.gpg > "$work/etc/trixie.sources"
apt=(apt-get -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/etc" -o "Dir::State::lists=$work/lists"
    -o "Dir::Cache=$work/apt" -o APT::Sandbox::User=root)
"${apt[@]}" update -qq
(cd "$work/debs" && "${apt[@]}" download -qq libvulkan-dev spirv-headers)
for package in "$work"/debs/*.deb; do dpkg -x "$package" "$into"; done
