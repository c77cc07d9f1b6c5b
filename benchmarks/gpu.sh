#!/usr/bin/env bash
# All checks and measurements that need a GPU: correctness on CUDA and in bf16, speed, memory, and
# that trainings converge.
# Usage: benchmarks/gpu.sh [OUT]
# DEVICE=cpu tests the script itself.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-$(mktemp -d)}
device=${DEVICE:-cuda}
mkdir -p "$out"

models_2d=(conditional-detr dab-detr dn-detr dab-deformable-detr dino mask2former)
full_2d=(
  conditional-detr-r50 dab-detr-r50 dn-detr-r50 dab-deformable-detr-r50 dino-4scale-r50
  mask2former-r50
)
models_3d=(petr petrv2)
height=${HEIGHT:-800} width=${WIDTH:-1333}
scene_height=${SCENE_HEIGHT:-320} scene_width=${SCENE_WIDTH:-800}
groups=(${COUNTS:-1 3 5 11 13})

# The groups of every detector are separate.
tiny=("${models_2d[@]/%/-tiny}" "${models_3d[@]/%/-tiny}")
full_3d=("${models_3d[@]/%/-v99}")
for model in "${tiny[@]}" "${full_2d[@]}" "${full_3d[@]}"; do
  python -m groupdetr doctor --device "$device" --model "$model" --groups 11 --json \
    > "$out/doctor-$model.json"
done

# Time and memory of a training step.
for model in "${full_2d[@]}"; do
  for precision in fp32 bf16; do
    python benchmarks/step.py --model "$model" --device "$device" --precision "$precision" \
      --height "$height" --width "$width" --groups "${groups[@]}" --group-chunk 1 \
      --out "$out/step-$model-$precision.json" | tee "$out/step-$model-$precision.md"
  done
done
for model in "${full_3d[@]}"; do
  for precision in fp32 bf16; do
    python benchmarks/step.py --model "$model" --device "$device" --precision "$precision" \
      --height "$scene_height" --width "$scene_width" --batch 1 --groups "${groups[@]}" \
      --group-chunk 1 --out "$out/step-$model-$precision.json" \
      | tee "$out/step-$model-$precision.md"
  done
done
python benchmarks/step.py --device "$device" --precision bf16 --height "$height" \
  --width "$width" --compile --out "$out/step-compiled.json" | tee "$out/step-compiled.md"

# Attention, and its kernels.
python benchmarks/attention.py --device "$device" --out "$out/attention.json" \
  | tee "$out/attention.md"
for dropout in 0 0.1; do
  python benchmarks/attention.py --device "$device" --kinds dense --batch 1 \
    --queries "${QUERIES:-900}" --height 120 --width 50 --dropout "$dropout" \
    --out "$out/attention-dense-$dropout.json" | tee "$out/attention-dense-$dropout.md"
done
python -m pytest -q tests/modeling/attention tests/claims/test_numerics.py \
  | tee "$out/attention-tests.txt"
for threads in 32 64 128 256; do
  python benchmarks/deformable.py --device "$device" --program "$threads" \
    --out "$out/deformable-$threads.json" | tee "$out/deformable-$threads.md"
  [ "$device" != cpu ] || break
done

# Trainings on the data of the demos, with one group and with six.
python - "$out/shapes" <<'PYTHON'
import sys

from groupdetr.data.synthetic import write
from groupdetr.paper.small_scale import SHAPES, SHAPES_COUNTS

write(SHAPES, sys.argv[1], SHAPES_COUNTS)
PYTHON
for model in "${models_2d[@]}"; do
  for k in 1 6; do
    for precision in fp32 bf16; do
      python -m groupdetr train "$out/shapes" --model "$model-tiny" --groups "$k" \
        --precision "$precision" --imgsz 64 --epochs "${EPOCHS:-12}" --augment flip \
        --eval-every 4 --device "$device" --no-check --out "$out/$model-k$k-$precision"
    done
  done
done
python - "$out/scenes" <<'PYTHON'
import sys

from groupdetr.data.nuscenes.synthetic import write
from groupdetr.paper.small_scale import SCENES

write(SCENES, sys.argv[1])
PYTHON
for model in "${models_3d[@]}"; do
  for k in 1 6; do
    for precision in fp32 bf16; do
      python -m groupdetr train "$out/scenes" --model "$model-tiny" --groups "$k" \
        --precision "$precision" --epochs "${EPOCHS:-20}" --eval-every 4 --device "$device" \
        --no-check --out "$out/$model-k$k-$precision"
    done
  done
done

cat "$out"/*.json "$out"/*.md
tail -n 1 "$out"/*/results.csv
