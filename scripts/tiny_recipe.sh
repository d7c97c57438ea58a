#!/usr/bin/env bash
# The whole recipe of OLMo Hybrid in miniature, on real text: pretraining, two mid-training runs and their soup,
# extension to four times the length by DRoPE and by YaRN, fine-tuning on conversations, preferences, export.
# Minutes on two CPU cores. Everything goes to runs/tiny, below the folder it is called from; given twice, it continues
# (with other flags, remove runs/tiny first). NUM_FILES=60 takes so many of the source files, to be quick.
# The same commands with configs/olmo_hybrid_7b or configs/olmo3_7b are the 7B's recipe.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
configs=$here/../configs/tiny data=runs/tiny/data
export PYTHONPATH=$here/..${PYTHONPATH:+:$PYTHONPATH}

run() {
  printf '\n$ python scripts/%s\n' "$*"
  "${PYTHON:-python}" "$here/$1" "${@:2}"
}

[ -e "$data/code/manifest.json" ] || run tiny_data.py "$data" ${NUM_FILES:+--num-files "$NUM_FILES"}
run prepare_data.py text "$data/code.jsonl" --tokenizer "$data" --output "$data/code"
run prepare_data.py chat "$data/chats.jsonl" --tokenizer "$data" --output "$data/chats" --max-length 256
run prepare_data.py preference "$data/pairs.jsonl" --tokenizer "$data" --output "$data/pairs" --max-length 256

run train.py "$configs/pretrain.yaml" "$@"
run train.py "$configs/midtrain.yaml" "$@"
run train.py "$configs/midtrain.yaml" --data.seed 683 --output-folder runs/tiny/midtrain_683 "$@"
[ -e runs/tiny/soup ] || run soup.py runs/tiny/midtrain runs/tiny/midtrain_683 --output runs/tiny/soup
run train.py "$configs/long_context_yarn.yaml" "$@"
run train.py "$configs/long_context_drope.yaml" "$@"
run train.py "$configs/sft.yaml" "$@"
run train.py "$configs/dpo.yaml" "$@"
run convert.py to-hf runs/tiny/dpo runs/tiny/hf --tokenizer-from "$data"
