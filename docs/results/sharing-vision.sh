#!/usr/bin/env bash
# The campaign of sharing-vision.md: five sharing rules on ten tasks from images, from one perception, seed by seed.
# Stopped anywhere, the same command goes on: finished trainings and evaluations are left as they are.
#   docs/results/sharing-vision.sh [DATA] [OUT] [SEEDS] [RULES]
# One core each for two at once: SEEDS=1 in one terminal and SEEDS=2 in another, with OMP_NUM_THREADS=1, when the
# perception is there. MIX: which set, sharing-vision-scarce.toml (default) or -ample.toml.
set -euo pipefail
DATA=${1:-datasets/mix-scarce} OUT=${2:-runs/sharing-vision} SEEDS=${3:-1 2 3} RULES=${4:-none all cds-hard hipi skill}
PYTHON=${PYTHON:-.venv/bin/python} STEPS=${STEPS:-5000} EPISODES=${EPISODES:-150} PERCEPTION=${PERCEPTION:-10000}
MIX=${MIX:-docs/results/sharing-vision-scarce.toml}
LIKE="--preset vision-64 --attention-stride 4 --photometric false --data $DATA --workers 1"

$PYTHON -m data collect --mix "$MIX" --out "$DATA" --size 64 --seed 5 --randomise all,-look,-table \
    --workers "${WORKERS:-1}"
$PYTHON -m train $LIKE --learner bc --rule none --shared-fraction 0 --seed 100 --steps "$PERCEPTION" --out "$OUT/perception"
for seed in $SEEDS; do
    for rule in $RULES; do
        run="$OUT/$rule-$seed"
        $PYTHON -m train $LIKE --rule "$rule" --seed "$seed" --steps "$STEPS" \
            --start-from "$OUT/perception/last.ckpt" --start-with perception --out "$run"
        $PYTHON -m eval --checkpoint "$run/last.ckpt" --data "$DATA" --policies checkpoint --episodes "$EPISODES" \
            --workers "${WORKERS:-1}" --reuse true
    done
done
