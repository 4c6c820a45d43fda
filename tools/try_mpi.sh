#!/usr/bin/env bash
# Two processes under Open MPI on this machine:
#
#     tools/try_mpi.sh FOLDER
#
# `FOLDER` is to be empty or new.
# One run gets a signal, is started again and goes on, one is told where to meet, as Open MPI 5 needs
# it, and one is left alone: the images must be the same, bit for bit. Debian's openmpi-bin.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "$1")
mkdir -p "$out"
# Of another try, checkpoints would be taken for those of this one.
if [ -n "$(ls -A "$out")" ]; then
    echo "error: $out is not empty" >&2
    exit 2
fi

python=${PYTHON:-python}
# The pyramid grows by itself with the number of steps, which is known only once the signal came.
program=("$python" launch.py --config=configs/quickstart.py:quick --config.stages=distill
    --config.checkpoint_every=10 --config.images.grow_every=1)
mpirun=(mpirun -n 2 --oversubscribe)
if [ "$(id -u)" = 0 ]; then mpirun+=(--allow-run-as-root); fi

"${mpirun[@]}" --version | sed -n 1p
"${mpirun[@]}" "${program[@]}" --config.steps=100000 --workdir="$out/resumed" --distributed=auto &
until compgen -G "$out/resumed/checkpoints/[0-9]*" >/dev/null; do
    # Ends this script if mpirun has ended.
    kill -0 $!
    sleep 0.2
done
kill -USR1 $!
code=0
wait $! || code=$?
if [ $code -ne 75 ]; then
    echo "error: exit code $code after SIGUSR1, not 75" >&2
    exit 1
fi
newest=$(find "$out/resumed/checkpoints" -regex '.*/[0-9]+' -printf '%f\n' | sort -n | tail -n 1)
program+=(--config.steps=$((newest + 2)))
for run in resumed whole; do
    "${mpirun[@]}" "${program[@]}" --workdir="$out/$run" --distributed=auto
done

port=$("$python" -c 'import socket; s = socket.create_server(("", 0)); print(s.getsockname()[1])')
# shellcheck disable=SC2016
"${mpirun[@]}" bash -c \
    '"$@" --num_processes=$OMPI_COMM_WORLD_SIZE --process_id=$OMPI_COMM_WORLD_RANK' \
    launch "${program[@]}" --workdir="$out/named" --distributed="127.0.0.1:$port"

for run in resumed named; do cmp "$out"/{whole,$run}/distilled/distilled.npz; done
echo "Open MPI: the run that was interrupted and the one that was told where to meet ended as" \
    "the one left alone"
