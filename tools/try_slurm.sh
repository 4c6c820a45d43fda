#!/usr/bin/env bash
# Two processes under Slurm, on a cluster of this machine alone, which is made for it:
#
#     tools/try_slurm.sh FOLDER
#
# `FOLDER` is to be empty or new.
# A batch job gets SIGTERM, asks to be queued again, goes on, is preempted by a job that is more
# urgent, goes on again, and is cancelled. Its run is then ended by srun, and must have the images of
# one that was left alone, bit for bit. Debian's slurm-wlm and munge; needs no rights but those of
# the user.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "$1")
mkdir -p "$out"
# Of another try, checkpoints would be taken for those of this one.
if [ -n "$(ls -A "$out")" ]; then
    echo "error: $out is not empty" >&2
    exit 2
fi

cluster=$(mktemp -d)
# From here on, every command of Slurm is for this cluster.
user=$(id -un) node=$(hostname -s)
export SLURM_CONF=$cluster/slurm.conf PATH=$PATH:/usr/sbin
# Each in a session of its own: Ctrl-C is for this script, which then ends them.
daemons=()
clean_up() {
    # Jobs would outlive the daemons.
    scancel --user="$user" 2>/dev/null || true
    for _ in {1..200}; do
        if [ -z "$(squeue --noheader 2>/dev/null)" ]; then break; fi
        sleep 0.2
    done
    kill "${daemons[@]}" 2>/dev/null || true
    wait
    rm -rf "$cluster"
}
trap clean_up EXIT
mkdir "$cluster"/{spool,state}
(umask 077 && head -c 1024 /dev/urandom >"$cluster/munge.key")
cat >"$SLURM_CONF" <<END
ClusterName=trial
SlurmctldHost=$node
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=$user
SlurmdUser=$user
# A job that is queued again waits for as long as credentials last.
AuthInfo=socket=$cluster/munge.socket,cred_expire=5
StateSaveLocation=$cluster/state
SlurmdSpoolDir=$cluster/spool
SlurmctldPidFile=$cluster/slurmctld.pid
SlurmdPidFile=$cluster/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$node CPUs=2
PartitionName=usual Nodes=ALL Default=YES PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL PriorityTier=2
END
setsid munged --foreground --force --key-file="$cluster/munge.key" --socket="$cluster/munge.socket" \
    --pid-file="$cluster/munge.pid" --log-file="$cluster/munge.log" \
    --seed-file="$cluster/munge.seed" 2>"$cluster/munged" &
daemons+=($!)
until [ -S "$cluster/munge.socket" ]; do sleep 0.1; done
setsid slurmctld -D 2>"$cluster/slurmctld" &
daemons+=($!)
setsid slurmd -D 2>"$cluster/slurmd" &
daemons+=($!)
for _ in {1..300}; do
    if [[ $(sinfo --noheader --states=idle 2>/dev/null) == *"$node"* ]]; then break; fi
    sleep 0.2
done
srun --version

# The pyramid grows by itself with the number of steps, which is known only in the end.
program=("${PYTHON:-python}" launch.py --config=configs/quickstart.py:quick --distributed=auto
    --config.stages=distill --config.checkpoint_every=10 --config.images.grow_every=1)
# Quoted for a shell, which folders with blanks need.
printf -v command '%q ' "${program[@]}" --config.steps=100000 --workdir="$out/resumed"
cat >"$cluster/job" <<END
#!/bin/bash
srun --kill-on-bad-exit=1 $command
code=\$?
if [ \$code -eq 75 ]; then scontrol requeue "\$SLURM_JOB_ID"; fi
exit \$code
END
job=$(sbatch --parsable --ntasks=2 --requeue --open-mode=append --output="$out/job.log" \
    "$cluster/job")

newest() {
    { find "$out/resumed/checkpoints" -regex '.*/[0-9]+' -printf '%f\n' 2>/dev/null || true; } |
        sort -n | tail -n 1
}
# No pipe into `grep -q`: it leaves at once, and what it left would fail.
says() { grep -qE " $1( |$)" <<<"$(scontrol show job "$job")"; }
# Waits until a start of the job, the first of which is number 0, has written a checkpoint.
await_start() {
    until says "Restarts=$1"; do sleep 0.2; done
    local before
    before=$(newest)
    while [ "$(newest)" = "$before" ]; do
        if says "JobState=(FAILED|COMPLETED)"; then
            cat "$out/job.log" >&2
            exit 1
        fi
        sleep 0.2
    done
}

await_start 0
scancel --signal=TERM "$job"
await_start 1
srun --partition=urgent -n 2 true
await_start 2
scancel "$job"
while [ -n "$(squeue --noheader --job="$job" 2>/dev/null)" ]; do sleep 0.2; done
grep -v "^step" "$out/job.log"

steps=$(($(newest) + 2))
for run in resumed whole; do
    srun -n 2 "${program[@]}" --config.steps=$steps --workdir="$out/$run"
done
cmp "$out"/{whole,resumed}/distilled/distilled.npz
echo "Slurm: the job that was interrupted, preempted and cancelled ended as the run left alone"
