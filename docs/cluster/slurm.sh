#!/usr/bin/env bash
# Train on several machines under Slurm: one torchrun per machine, one process per GPU.
#
#   sbatch docs/cluster/slurm.sh RECIPE.yaml [key.sub=value …]
#
# Submitting it again continues the run: --resume starts a new run if there is none. Slurm sends SIGUSR1 ninety seconds
# before the time limit; the run then saves a checkpoint and ends. The output folder and the data must be on a file
# system that all machines share. PORT changes the port of the first machine (29500).
#SBATCH --job-name=clipkit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@90
#SBATCH --requeue
set -euo pipefail

host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE))

srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
  --rdzv-backend c10d --rdzv-endpoint "$host:${PORT:-29500}" --rdzv-id "$SLURM_JOB_ID" \
  -m clipkit train "$@" --resume
