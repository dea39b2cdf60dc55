#!/bin/sh
# The main job on the tiny trained MiMo of this repository: five commands, each shown before it runs.
set -eu
model=$1
out=$2
rm -rf "$out"
mkdir -p "$out"

step() {
    printf '\n\033[1m$ mimo-gguf %s\033[0m\n' "$*"
    mimo-gguf "$@"
}

echo "A MiMo of 4 M parameters, trained for this repository: the layout, tensors and tokenizer kind of MiMo-7B."
step convert "$model" -o "$out" --quiet
step inspect "$out/mimo-tiny-BF16.gguf"
step quantize "$out/mimo-tiny-BF16.gguf" --type Q4_K_M -o "$out" --quiet
step fit "$out/mimo-tiny-Q4_K_M.gguf" --ctx 512
step chat "$out/mimo-tiny-Q4_K_M.gguf" -p "What is 17 + 25?" --temp 0 --ctx 512 --always-draft

printf '\nWith the real model, the same commands:\n'
echo "  mimo-gguf convert XiaomiMiMo/MiMo-7B-RL"
echo "  mimo-gguf quantize MiMo-7B-RL-BF16.gguf --type Q4_K_M"
echo "  mimo-gguf chat MiMo-7B-RL-Q4_K_M.gguf"
