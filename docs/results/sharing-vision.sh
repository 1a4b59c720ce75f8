#!/usr/bin/env bash
# The campaign of sharing-vision.md: five sharing rules on ten tasks from images, seed by seed. Stopped anywhere, the
# same command goes on: finished trainings and evaluations are left as they are.
#   docs/results/sharing-vision.sh [DATA] [OUT] [SEEDS] [RULES]
# One core each for two at once: SEEDS=0 in one terminal and SEEDS=1 in another, with OMP_NUM_THREADS=1.
set -euo pipefail
DATA=${1:-datasets/mix} OUT=${2:-runs/sharing-vision} SEEDS=${3:-0 1 2} RULES=${4:-none all cds-hard hipi skill}
PYTHON=${PYTHON:-.venv/bin/python} STEPS=${STEPS:-5000} EPISODES=${EPISODES:-150}

$PYTHON -m data collect --mix docs/results/sharing-vision.toml --out "$DATA" --size 64 --seed 5 \
    --randomise all,-look,-table --workers "${WORKERS:-1}"
for seed in $SEEDS; do
    for rule in $RULES; do
        run="$OUT/$rule-$seed"
        $PYTHON -m train --preset vision-64 --attention-stride 4 --photometric false --data "$DATA" --rule "$rule" --seed "$seed" \
            --steps "$STEPS" --workers 1 --out "$run"
        $PYTHON -m eval --checkpoint "$run/last.ckpt" --data "$DATA" --policies checkpoint --episodes "$EPISODES" \
            --workers "${WORKERS:-1}" --reuse true
    done
done
