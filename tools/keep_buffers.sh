#!/bin/sh
# Compiles the Vulkan layer that Mesa 22.3's lavapipe needs (tools/keep_buffers.c says why); other drivers need none.
# usage: tools/keep_buffers.sh FOLDER; Vulkan's headers are in FOLDER/usr/include, the layer is then in FOLDER/layer.
case $(dpkg-query -W -f '${Version}' mesa-vulkan-drivers 2>/dev/null) in 22.*) ;; *) exit 0 ;; esac
source=$(cd "$(dirname "$0")" && pwd)/keep_buffers.c
mkdir -p "$1/layer" && cd "$1/layer" || exit 1
[ keep_buffers.json -nt "$source" ] && exit 0
${CC:-cc} -O1 -shared -fPIC -I "$1/usr/include" "$source" -o libkeep_buffers.so || exit 1
cat > keep_buffers.json <<JSON
{"file_format_version": "1.1.2", "layer": {
  "name": "VK_LAYER_MIMO_GGUF_keep_buffers", "type": "GLOBAL", "library_path": "./libkeep_buffers.so", "api_version": "1.3.0",
  "implementation_version": "1", "description": "keeps buffers that are destroyed, because old lavapipes look at them"}}
JSON
