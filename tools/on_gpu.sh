#!/bin/sh
# Runs a command on the GPU of the tests, which is Mesa's software GPU if there is no other.
# usage: tools/on_gpu.sh FOLDER COMMAND...; FOLDER has what `make gpu-env` put there, and keeps compiled kernels.
folder=$1; shift
# llama.cpp leaves out devices that are CPUs, unless it is told their number.
export GGML_VK_VISIBLE_DEVICES="${GGML_VK_VISIBLE_DEVICES-0}"
# Mesa keeps compiled kernels: here they last as long as the wheels. A run that has none compiles for minutes.
export MESA_SHADER_CACHE_DIR="${MESA_SHADER_CACHE_DIR-$folder/kernels}"
if [ -e "$folder/layer/software_gpu.json" ]; then
    export VK_LAYER_PATH="${VK_LAYER_PATH:+$VK_LAYER_PATH:}$folder/layer"
    export VK_INSTANCE_LAYERS="${VK_INSTANCE_LAYERS:+$VK_INSTANCE_LAYERS:}VK_LAYER_MIMO_GGUF_software_gpu"
    export SOFTWARE_GPU_MEMORY="${SOFTWARE_GPU_MEMORY-$folder/layer/memory}" # where processes say what they have allocated
fi
exec "$@"
