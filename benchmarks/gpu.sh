#!/usr/bin/env bash
# What is to be known of this package on one NVIDIA GPU, in at most 12 minutes, as Markdown:
#
#     bash benchmarks/gpu.sh > gpu.md
#
# Needs the extras cuda12 and parity. What the time does not suffice for is said; SECONDS_LEFT=1800
# gives more. TRIAL=1 goes through all of it without a GPU, with sizes that say nothing.

set -u
cd "$(dirname "$0")/.." || exit
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" XLA_PYTHON_CLIENT_PREALLOCATE=false
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Programs that several parts compile are compiled once.
export JAX_COMPILATION_CACHE_DIR="$work/compiled"
limit=${SECONDS_LEFT:-720}

if [ "${TRIAL:-}" ]; then
    model=vit_tiny_patch16_224 device=cpu config=configs/quickstart.py:quick
    # All of one size, so that its programs are compiled once.
    few="4 2" more="4 2" most="4 2" copies="4 2"
    size=(--resolution=36 --crop=32 --rounds=1) precise=(--depth=1 --views=1)
else
    model=vit_base_patch14_dinov2 device=gpu config=configs/quickstart.py
    few="100 1" more="100 10" most="1000 3" copies="1000 10"
    size=(--rounds=3) precise=()
fi

# part TITLE COMMAND ...: a section, with what the command prints, or why there is none.
part() {
    local title=$1 left=$((limit - SECONDS)) begun=$SECONDS
    shift
    printf '\n## %s\n\n    %s\n\n' "$title" "$*"
    if [ "$left" -lt 15 ]; then
        echo "Not run: no time was left."
        return
    fi
    # A command may be a function.
    local code=0
    timeout "$left" bash -c '"$@"' part "$@" 2> "$work/stderr" || code=$?
    if [ "$code" -eq 124 ]; then
        echo "Not finished: no time was left."
    elif [ "$code" -ne 0 ]; then
        echo "Failed:"
        grep -E "^(error:|[A-Za-z.]+(Error|Exception))" "$work/stderr" | head -n 3 || true
    fi
    printf '\n%s s\n' $((SECONDS - begun))
}

# step CLASSES COPIES CONTENDERS
step() {
    part "A step, $1 images x $2 copies" python benchmarks/step.py --architecture="$model" \
        --classes="$1" --copies="$2" "${size[@]}" --dtype=bfloat16 --device="$device" \
        --contenders="$3"
}

digits() {
    python launch.py --config="$config" --workdir="$work/$1" --config.stages=distill "${@:2}"
}

twice() {
    for name in one two; do
        digits "$name" --config.deterministic=True > "$work/said" || return
    done
    python - "$work/one" "$work/two" <<'END'
import sys

import numpy as np

import lgm_jax

one, two = (lgm_jax.load_distilled(folder)[0] for folder in sys.argv[1:])
print("The images are the same to the bit." if np.array_equal(one, two) else "They differ.")
END
}

export -f digits twice
export work config

echo "# One GPU"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2> "$work/stderr" ||
    echo "A CPU: a trial, whose numbers say nothing."
python -c "import jax, jaxlib, torch; print(f'jax {jax.__version__}, jaxlib {jaxlib.__version__}, torch {torch.__version__}')"
git log -1 --format='commit %h'

part "bfloat16 against float32" \
    python benchmarks/precision.py dinov2_vitb14 dino_vitb16 dinov2_vitl14 "${precise[@]}"
# Words on purpose: images, copies.
# shellcheck disable=SC2086
{
    step $few ours,cached,authors,tuned
    step $more ours,authors,tuned
    part "The quickstart" digits quickstart
    part "The same run twice, deterministic" twice
    step $copies cached
    step $most ours,authors,tuned
}
