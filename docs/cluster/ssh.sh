#!/usr/bin/env bash
# Train on machines that are reached by ssh: one torchrun per machine, one process per GPU.
#
#   docs/cluster/ssh.sh "node1 node2" RECIPE.yaml [key.sub=value …]
#
# The first machine coordinates. The same environment, recipe and data must be at the same paths on all machines, and
# the output folder on a file system that they share. Ctrl-C stops all of them after a checkpoint; running the same
# command again continues the run. PROCESSES and PORT change the number of processes per machine (one per GPU) and the
# port of the first machine (29500).
set -euo pipefail

read -ra machines <<<"$1"
shift
command=$(printf '%q ' -m clipkit train "$@" --resume)

for rank in "${!machines[@]}"; do
  # -tt: the remote process gets the signal when this script ends.
  ssh -tt "${machines[$rank]}" "cd $(printf '%q' "$PWD") && torchrun --nnodes ${#machines[@]} --node-rank $rank \
    --nproc-per-node ${PROCESSES:-gpu} --master-addr ${machines[0]} --master-port ${PORT:-29500} $command" &
done
trap 'kill -INT $(jobs -p); wait' INT TERM
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit "$status"
