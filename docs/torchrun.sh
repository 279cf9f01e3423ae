#!/usr/bin/env bash
# Trains on one node, or on several: start it on each with the same MASTER_ADDR and a NODE of its own.
#
#   docs/torchrun.sh --config configs/finetune.yaml --config configs/trainer/fsdp2.yaml \
#       --model.init_from MODEL --data.path rows.jsonl
#   NODES=2 NODE=0 MASTER_ADDR=node0 docs/torchrun.sh ...    on node0
#   NODES=2 NODE=1 MASTER_ADDR=node0 docs/torchrun.sh ...    on node1
set -euo pipefail

nodes=${NODES:-1}
gpus=${GPUS:-8}

exec torchrun \
    --nnodes "$nodes" --node-rank "${NODE:-0}" --nproc-per-node "$gpus" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" \
    -m lightning_modules fit "$@" --trainer.num_nodes "$nodes" --trainer.devices "$gpus"
