#!/usr/bin/env bash
# Two processes under Slurm, on a cluster of this machine alone, which is made for it:
#
#     tools/try_slurm.sh FOLDER
#
# One run is left alone. Another is a batch job that gets SIGTERM, asks to be queued again, goes on,
# is preempted by a job that is more urgent, and goes on again: the images must be the same, bit for
# bit. Debian's slurm-wlm and munge; needs no rights but those of the user.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "$1")
mkdir -p "$out"

cluster=$(mktemp -d)
daemons=()
trap 'kill "${daemons[@]}" 2>/dev/null || true; wait; rm -rf "$cluster"' EXIT
mkdir "$cluster"/{spool,state}
(umask 077 && head -c 1024 /dev/urandom >"$cluster/munge.key")
user=$(id -un) node=$(hostname -s)
export SLURM_CONF=$cluster/slurm.conf PATH=$PATH:/usr/sbin
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
munged --foreground --force --key-file="$cluster/munge.key" --socket="$cluster/munge.socket" \
    --pid-file="$cluster/munge.pid" --log-file="$cluster/munge.log" \
    --seed-file="$cluster/munge.seed" 2>"$cluster/munged" &
daemons+=($!)
until [ -S "$cluster/munge.socket" ]; do sleep 0.1; done
slurmctld -D 2>"$cluster/slurmctld" &
daemons+=($!)
slurmd -D 2>"$cluster/slurmd" &
daemons+=($!)
for _ in {1..300}; do
    if sinfo --noheader --states=idle 2>/dev/null | grep -q "$node"; then break; fi
    sleep 0.2
done
srun --version

program="${PYTHON:-python} launch.py --config=configs/quickstart.py:quick --distributed=auto
    --config.stages=distill --config.steps=100 --config.checkpoint_every=10"
# shellcheck disable=SC2086
srun -n 2 $program --workdir="$out/whole"

cat >"$cluster/job" <<END
#!/bin/bash
#SBATCH --ntasks=2 --requeue --open-mode=append --output=$out/job.log
srun --kill-on-bad-exit=1 ${program//$'\n'/} --workdir=$out/resumed
code=\$?
if [ \$code -eq 75 ]; then scontrol requeue "\$SLURM_JOB_ID"; fi
exit \$code
END
job=$(sbatch --parsable "$cluster/job")

# What Slurm says of the job, for example "Restarts" and "JobState".
field() { scontrol show job "$job" | grep -o " $1=[^ ]*" | cut -d= -f2; }
newest() { find "$out/resumed/checkpoints" -regex '.*/[0-9]+' -printf '%f\n' 2>/dev/null | sort -n | tail -n 1; }
# Waits until a start of the job has written a checkpoint of its own.
await_steps() {
    local before=$1 restarts=$2
    until [ "$(field Restarts)" = "$restarts" ] && [ "$(newest)" -gt "$before" ] 2>/dev/null; do
        if [ "$(field JobState)" = COMPLETED ]; then
            echo "error: the job ended before it was interrupted" >&2
            exit 1
        fi
        sleep 0.2
    done
}

await_steps 0 0
scancel --signal=TERM "$job"
until [ "$(field Restarts)" = 1 ]; do sleep 0.2; done
await_steps "$(newest)" 1
srun --partition=urgent -n 2 true
until [ "$(field JobState)" = COMPLETED ] || [ "$(field JobState)" = FAILED ]; do sleep 0.5; done
cat "$out/job.log"
echo "job $job: $(field JobState) after $(field Restarts) restarts"
cmp "$out"/{whole,resumed}/distilled/distilled.npz
echo "Slurm: the job that was interrupted and preempted ended as the run left alone"
