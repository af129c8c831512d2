#!/usr/bin/env bash
# Pre-train on several machines: the same command on each, with MASTER the name of the first one.
#   NODES=4 MASTER=node0 bash examples/launch/torchrun_several_nodes.sh --data … --output …
set -euo pipefail
torchrun --nnodes "${NODES:?number of machines}" --nproc-per-node "${WORKERS:-8}" \
    --rdzv-backend c10d --rdzv-endpoint "${MASTER:?name of the first machine}:29500" --rdzv-id r2d2 \
    -m modeling_r2d2.cli pretrain "$@"
