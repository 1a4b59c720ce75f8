#!/usr/bin/env bash
# The campaign of sharing-walker2d.md: sharing rules on walker2d. Stopped anywhere, the same command goes on.
#   STEPS=300000 SEEDS=0,1,2,3,4,5 docs/results/sharing-walker2d.sh [RECIPE] [OUT]
# `a`: the rules as published (tau: signed mean, clipped from below by 5); `b`: CDS as the public code of PTR reads it.
set -euo pipefail
RECIPE=${1:-published} OUT=${2:-runs/sharing-walker2d-$RECIPE}
PYTHON=${PYTHON:-.venv/bin/python} STEPS=${STEPS:-300000} SEEDS=${SEEDS:-0,1,2,3,4,5}
DATA=datasets/walker2d-$RECIPE.h5

[ -f "$DATA" ] || make collect-state BENCHMARK=walker2d RECIPE="$RECIPE"
COMMON="--data $DATA --seeds $SEEDS --steps $STEPS ${ARGS:-}"
$PYTHON -m train cql $COMMON --rules none,all,cds-hard,cds --out "$OUT/a"
$PYTHON -m train cql $COMMON --rules cds --reference mean --sharing-temperature absolute \
    --sharing-temperature-clip 10,10000 --divergence-from "$OUT/a/policy.pt" --out "$OUT/b"
$PYTHON -m eval.tables "$OUT/a/returns.json"
$PYTHON -m eval.tables "$OUT/b/returns.json"
