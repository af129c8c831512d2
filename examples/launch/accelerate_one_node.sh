#!/usr/bin/env bash
# The same by accelerate; for several machines add --num_machines, --machine_rank, --main_process_ip, --main_process_port.
set -euo pipefail
accelerate launch --multi_gpu --num_processes "${WORKERS:-8}" --mixed_precision no -m modeling_r2d2.cli pretrain "$@"
# mixed precision is an option of the command itself: --bf16
