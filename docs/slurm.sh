#!/usr/bin/env bash
# Trains under SLURM, and goes on after every time limit until it is done:
#
#   sbatch docs/slurm.sh --config configs/finetune.yaml --config configs/trainer/fsdp2.yaml \
#       --model.init_from MODEL --data.path rows.jsonl --data.batch_size 128
#
# One task per GPU. Every task receives SIGTERM 300 s before the limit: time for one step and one checkpoint.
#SBATCH --job-name=srml
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -uo pipefail

runs=${RUNS:-runs/$SLURM_JOB_NAME-$SLURM_JOB_ID} # a requeued job keeps its id
newest=$(ls -td "$runs"/*/checkpoints/last-* 2>/dev/null | head -n 1)
resume=()
if [ -n "$newest" ]; then
    resume=(--ckpt_path "${newest%/checkpoints/*}")
fi

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from the job
srun --kill-on-bad-exit=1 funreason fit "$@" "${resume[@]}" \
    --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" \
    --trainer.default_root_dir "$runs"
code=$?

if [ "$code" -eq 143 ]; then # SIGTERM: saved, and not done
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
