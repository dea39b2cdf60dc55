#!/bin/sh
# Compiles the Vulkan layer for Mesa's software GPU (tools/software_gpu.c says what it does), if it is not there.
# usage: tools/software_gpu.sh FOLDER; Vulkan's headers are in FOLDER/usr/include, the layer is then in FOLDER/layer.
source=$(cd "$(dirname "$0")" && pwd)/software_gpu.c
mkdir -p "$1/layer" && cd "$1/layer" || exit 1
[ software_gpu.json -nt "$source" ] && exit 0
${CC:-cc} -O1 -shared -fPIC -pthread -I "$1/usr/include" "$source" -o libsoftware_gpu.so || exit 1
cat > software_gpu.json <<JSON
{"file_format_version": "1.1.2", "layer": {
  "name": "VK_LAYER_MIMO_GGUF_software_gpu", "type": "GLOBAL", "library_path": "./libsoftware_gpu.so", "api_version": "1.3.0",
  "implementation_version": "1", "description": "counts a software GPU's memory, and keeps its buffers"}}
JSON
