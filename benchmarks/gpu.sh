#!/usr/bin/env bash
# What only a GPU can tell: correctness on CUDA and under bf16, speed, memory, and that training converges there.
# Usage: benchmarks/gpu.sh [OUT]    DEVICE=cpu tries the script itself.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-$(mktemp -d)}
device=${DEVICE:-cuda}
mkdir -p "$out"
families=(conditional-detr dab-detr dn-detr dab-deformable-detr dino mask2former)
full=(conditional-detr-r50 dab-detr-r50 dn-detr-r50 dab-deformable-detr-r50 dino-4scale-r50 mask2former-r50)
spatial=(petr petrv2)  # detectors of scenes
height=${HEIGHT:-800} width=${WIDTH:-1333}
scene_height=${SCENE_HEIGHT:-320} scene_width=${SCENE_WIDTH:-800}
counts=(${COUNTS:-1 3 5 11 13})  # of groups
for model in "${families[@]/%/-tiny}" "${full[@]}" "${spatial[@]/%/-tiny}" "${spatial[@]/%/-v99}"; do
  python -m groupdetr doctor --device "$device" --model "$model" --groups 11 --json > "$out/doctor-$model.json"
done
for model in "${full[@]}"; do
  for precision in fp32 bf16; do
    python benchmarks/step.py --model "$model" --device "$device" --precision "$precision" --height "$height" \
      --width "$width" --groups "${counts[@]}" --group-chunk 1 --out "$out/step-$model-$precision.json" \
      | tee "$out/step-$model-$precision.md"
  done
done
for model in "${spatial[@]/%/-v99}"; do
  for precision in fp32 bf16; do
    python benchmarks/step.py --model "$model" --device "$device" --precision "$precision" --height "$scene_height" \
      --width "$scene_width" --batch 1 --groups "${counts[@]}" --group-chunk 1 \
      --out "$out/step-$model-$precision.json" | tee "$out/step-$model-$precision.md"
  done
done
python benchmarks/step.py --device "$device" --precision bf16 --height "$height" --width "$width" --compile \
  --out "$out/step-compiled.json" | tee "$out/step-compiled.md"
python benchmarks/attention.py --device "$device" --out "$out/attention.json" | tee "$out/attention.md"
for dropout in 0 0.1; do
  python benchmarks/attention.py --device "$device" --kinds dense --batch 1 --queries "${QUERIES:-900}" --height 120 \
    --width 50 --dropout "$dropout" --out "$out/attention-dense-$dropout.json" | tee "$out/attention-dense-$dropout.md"
done

python -m pytest -q tests/attention tests/claims/test_numerics.py | tee "$out/attention-tests.txt"
for threads in 32 64 128 256; do
  python benchmarks/deformable.py --device "$device" --program "$threads" \
    --out "$out/deformable-$threads.json" | tee "$out/deformable-$threads.md"
  [ "$device" != cpu ] || break
done

python - "$out/shapes" <<'PYTHON'
import sys
from pathlib import Path
from groupdetr.data.synthetic import write
from groupdetr.experiments import DEMO_COUNTS, DEMO_DATA
write(DEMO_DATA, Path(sys.argv[1]), DEMO_COUNTS)
PYTHON
for family in "${families[@]}"; do
  for groups in 1 6; do
    for precision in fp32 bf16; do
      python -m groupdetr train "$out/shapes" --model "$family-tiny" --groups "$groups" --precision "$precision" \
        --imgsz 64 --epochs "${EPOCHS:-12}" --augment flip --eval-every 4 --device "$device" --no-check \
        --out "$out/$family-k$groups-$precision"
    done
  done
done
python - "$out/scenes" <<'PYTHON'
import sys
from groupdetr.data.nuscenes.synthetic import write
from groupdetr.experiments import DEMO_SCENES_DATA
write(DEMO_SCENES_DATA, sys.argv[1])
PYTHON
for family in "${spatial[@]}"; do
  for groups in 1 6; do
    for precision in fp32 bf16; do
      python -m groupdetr train "$out/scenes" --model "$family-tiny" --groups "$groups" --precision "$precision" \
        --epochs "${EPOCHS:-20}" --eval-every 4 --device "$device" --no-check --out "$out/$family-k$groups-$precision"
    done
  done
done
cat "$out"/*.json "$out"/*.md
tail -n 1 "$out"/*/results.csv
