#!/usr/bin/env bash
# Everything that needs a GPU, in at most nine minutes, the most important first: correctness on
# CUDA, steps that are queued without a wait, kernels, a compiled step, and two short trainings.
#
#   benchmarks/gpu.sh [--out FOLDER] [--wheels FOLDER] [--lwdetr CHECKOUT] [--seconds N]
#
# --wheels: packages that the machine lacks, as wheels. They are installed without a network into a
#   folder of their own.
# --seconds: after which no further part begins, and a part that still runs is ended.
# FOLDER has five files at the end: summary.md with all tables, results.json with all numbers, the
# machine, the versions and the date, log.txt with messages, and the metrics of the two trainings.
# A part that fails or takes too long does not end the others, and the summary says so.
# DEVICE=cpu runs a tiny version of all parts, to test this script.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
out="" wheels="" lwdetr="" seconds=540
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2 ;;
    --wheels) wheels=$2 ;;
    --lwdetr) lwdetr=$2 ;;
    --seconds) seconds=$2 ;;
    *) echo "unknown option $1; options: --out, --wheels, --lwdetr, --seconds" >&2; exit 2 ;;
  esac
  [ $# -ge 2 ] || { echo "$1 needs a value" >&2; exit 2; }
  shift 2
done
out=${out:-$(mktemp -d)}
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -n "$wheels" ]; then
  # Without dependencies: a wheel of torch would replace that of the machine.
  "$python" -m pip install -q --no-index --no-deps --target "$work/packages" "$wheels"/*.whl
  export PYTHONPATH="$PYTHONPATH:$work/packages"
fi

# part NAME SECONDS COMMAND...: run a part with a limit of time, and note how it ended.
parts=()
part() {
  local name=$1 limit=$2 code=0 started=$SECONDS left=$((seconds - SECONDS))
  shift 2
  [ "$device" != cpu ] || limit=$((limit * 5)) # a CPU that is tested on may be busy
  if [ "$left" -lt 10 ]; then
    parts+=("| $name | not begun: no time left | |")
    return
  fi
  echo "== $name"
  timeout --kill-after=5 "$((limit < left ? limit : left))" "$@" > "$work/$name.md" \
    2> "$work/$name.txt" || code=$?
  tail -n 40 "$work/$name.md"
  [ "$code" -eq 0 ] || tail -n 15 "$work/$name.txt"
  case $code in
    0) parts+=("| $name | done | $((SECONDS - started)) |") ;;
    124 | 137) parts+=("| $name | took too long | $((SECONDS - started)) |") ;;
    *) parts+=("| $name | failed with code $code | $((SECONDS - started)) |") ;;
  esac
}

quick=() tests=(tests/modeling/attention tests/claims/test_numerics.py) minutes=1.2
[ "$device" != cpu ] || { quick=(--quick) tests=(tests/claims/test_host_waits.py -k petrv2) minutes=0.05; }
peers=()
[ -z "$lwdetr" ] || peers+=(--lwdetr "$lwdetr")
"$python" -c 'import rfdetr' 2> /dev/null &&
  peers+=(--rfdetr "$("$python" -c 'import pathlib, rfdetr; print(pathlib.Path(rfdetr.__file__).parents[1])')")

# 1. Correctness: groups are separate on this device, and the kernels have the right results.
part groups 60 "$python" -m groupdetr doctor --device "$device" --model dino-tiny --groups 11 --json
part tests 80 "$python" -m pytest -q -x -p no:cacheprovider "${tests[@]}"
# 2. Steps without a wait between them, with what the GPU does in them.
part steps 170 "$python" benchmarks/queued_steps.py --device "$device" "${quick[@]}" \
  --out "$work/steps.json"
# 3. Deformable attention against the form by grid_sample.
part deformable 40 "$python" benchmarks/deformable.py --device "$device" "${quick[@]}" \
  --out "$work/deformable.json"
# 4. Matching and losses, against other projects where they are at hand.
part criterion 40 "$python" benchmarks/criterion.py --device "$device" "${quick[@]}" \
  ${peers[@]+"${peers[@]}"} --out "$work/criterion.json"
# 5. A compiled step.
part compiled 60 "$python" benchmarks/queued_steps.py --device "$device" "${quick[@]}" --compile \
  --models "$([ "$device" = cpu ] && echo conditional-detr-tiny || echo conditional-detr-r50)" \
  --batches 2 --precisions bf16 --out "$work/compiled.json"
# 6. Two trainings that converge.
"$python" - "$work/shapes" > "$work/shapes.txt" 2>&1 <<'PYTHON'
import sys

from groupdetr.data.synthetic import write
from groupdetr.paper.small_scale import SHAPES, SHAPES_COUNTS

write(SHAPES, sys.argv[1], SHAPES_COUNTS)
PYTHON
for model in conditional-detr dino; do
  part "training-$model" 90 "$python" -m groupdetr train "$work/shapes" --model "$model-tiny" \
    --groups 6 --imgsz 64 --augment flip --minutes "$minutes" --eval-every 4 --device "$device" \
    --no-check --out "$work/run-$model"
  cp "$work/run-$model/results.csv" "$out/training-$model.csv" 2> /dev/null
done

# The files that are kept.
{
  printf '| part | | seconds |\n|---|---|---|\n'
  printf '%s\n' "${parts[@]}"
  for table in "$work"/*.md; do
    printf '\n## %s\n\n' "$(basename "$table" .md)"
    cat "$table"
  done
} > "$out/summary.md"
tail -n 200 "$work"/*.txt > "$out/log.txt"
"$python" - "$work" "$out/results.json" <<'PYTHON'
import json
import sys
from pathlib import Path

files = sorted(Path(sys.argv[1]).glob("*.json"))
results = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
Path(sys.argv[2]).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
PYTHON
printf '%s\n' "${parts[@]}"
echo "$out"
