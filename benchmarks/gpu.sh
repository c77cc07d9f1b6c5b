#!/usr/bin/env bash
# What only a GPU can tell: correctness on CUDA and under bf16, speed, memory, and that training converges there.
# Usage: benchmarks/gpu.sh [OUT]    DEVICE=cpu tries the script itself.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-$(mktemp -d)}
device=${DEVICE:-cuda}
mkdir -p "$out"
python -m groupdetr doctor --device "$device" --json > "$out/doctor-tiny.json"
python -m groupdetr doctor --device "$device" --model conditional-detr-r50 --groups 11 --json > "$out/doctor-r50.json"

side=${SIDE:-1024}
for precision in fp32 bf16; do
  python benchmarks/step.py --device "$device" --precision "$precision" --side "$side" > "$out/step-$precision.json"
done

python - "$out/shapes" <<'PYTHON'
import sys
from pathlib import Path
from groupdetr.data.synthetic import write
from groupdetr.experiments import DEMO_COUNTS, DEMO_DATA
write(DEMO_DATA, Path(sys.argv[1]), DEMO_COUNTS)
PYTHON
for groups in 1 6; do
  for precision in fp32 bf16; do
    python -m groupdetr train "$out/shapes" --model conditional-detr-tiny --groups "$groups" --precision "$precision" \
      --imgsz 64 --epochs "${EPOCHS:-12}" --augment flip --eval-every 4 --device "$device" --no-check \
      --out "$out/tiny-k$groups-$precision"
  done
done
cat "$out"/*.json
tail -n 1 "$out"/tiny-*/results.csv
