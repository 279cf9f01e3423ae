#!/usr/bin/env bash
# Everything that only a GPU can say, in eighteen minutes at most: benchmarks/gpu_session.sh [--cpu] [STEP...]
# Rows go into $OUT/rows.jsonl as steps end, what they print into $OUT/log.txt; OUT is runs/gpu_session unless set.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export OUT=${OUT:-runs/gpu_session}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
exec timeout -k 5 "${LIMIT:-1080}" "$python" -m benchmarks.gpu_session "$@"
