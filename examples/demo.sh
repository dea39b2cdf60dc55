#!/bin/sh
# The main job on the tiny trained MiMo of this repository: five commands, each shown before it runs.
#     sh examples/demo.sh MODEL OUT [FOLDER_OF_PROGRAMS]
set -eu
model=$1
out=$2
programs=${3:-}
bin=
on_path=$(command -v mimo-gguf || true)
if [ -n "$programs" ]; then
    bin=$(cd "$programs" && pwd)
    PATH="$bin:$PATH"
fi
rm -rf "$out"
mkdir -p "$out"

bold='' plain=''
if [ -t 1 ]; then
    bold=$(printf '\033[1m') plain=$(printf '\033[0m')
fi

step() {
    printf '\n%s$ mimo-gguf %s%s\n' "$bold" "$*" "$plain"
    mimo-gguf "$@"
}

echo "A MiMo of 4 M parameters, trained for this repository: the layout, tensors and tokenizer kind of MiMo-7B."
step convert "$model" -o "$out" --quiet
step inspect "$out/mimo-tiny-BF16.gguf"
printf '\nThe first quantize on a machine compiles its kernels: 10 to 30 seconds, once.\n'
step quantize "$out/mimo-tiny-BF16.gguf" --type Q4_K_M -o "$out" --quiet
step fit "$out/mimo-tiny-Q4_K_M.gguf" --ctx 512
step chat "$out/mimo-tiny-Q4_K_M.gguf" -p "What is 17 + 25?" --temp 0 --ctx 512 --always-draft --stats

printf '\nWith the real model (a download of 15.7 GB), the same in two commands:\n'
if [ -n "$bin" ] && [ "$on_path" != "$bin/mimo-gguf" ]; then
    echo "  . $programs/activate          # puts mimo-gguf on your PATH, in this shell"
fi
echo "  mimo-gguf convert XiaomiMiMo/MiMo-7B-RL --type Q4_K_M"
echo "  mimo-gguf chat MiMo-7B-RL-Q4_K_M.gguf"
