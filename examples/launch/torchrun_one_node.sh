#!/usr/bin/env bash
# Pre-train on all GPUs of one machine. Batch sizes are per worker; the contrastive batch is that of all workers.
set -euo pipefail
workers=${WORKERS:-$(python -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
torchrun --standalone --nproc-per-node "$workers" -m modeling_r2d2.cli pretrain "$@"
# bash examples/launch/torchrun_one_node.sh --data 'shards/{0000..0099}.tar' --clip CLIP --roberta ROBERTA --output runs/r2d2
