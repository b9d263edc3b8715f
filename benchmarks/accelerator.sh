#!/usr/bin/env bash
# Speed and a short study on a machine with an accelerator and without a network: needs the checkout and the folder that
# `make accelerator-pack` made. What comes back lies flat in one folder of few files.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: benchmarks/accelerator.sh [--rehearse] [--pack DIR] [--out DIR] [--only speed|study] [--dataset NAME]
                                 [--study NAME] [--speed-minutes M] [--study-minutes M] [-- ARGUMENTS]
  --rehearse         on the processor, with toy sizes, 4 and 5 minutes
  --pack DIR         what `make accelerator-pack` made (.accelerator)
  --out DIR          at most 8 files of at most 16 MiB come here ($OUT, else accelerator-out)
  --only PART        speed or study alone
  --dataset NAME     one of the pack's (its first)
  --study NAME       pgd-accelerator (default) or data-fraction, at its scale `accelerator`
  --speed-minutes M, --study-minutes M
                     for each part (5 and 7)
  ARGUMENTS          for `jaxpgd study`, such as --only percent=10
PYTHON names the interpreter (python3). Exit code: 0 all ended well, 1 a part did not, 2 nothing was run.
EOF
}

fail() { echo "error: $*" >&2; exit 2; }

root=$(cd "$(dirname "$0")/.." && pwd)
pack=$root/.accelerator out=${OUT:-accelerator-out} parts="speed study" dataset="" rehearse="" speed="" study=""
study_name=pgd-accelerator more=()
python=${PYTHON:-python3}
most_pack=$((60 << 20)) most_file=$((16 << 20)) most_files=8
slack=45 kill_after=15 # seconds that a part may take longer, and that it has to end when told to

while (($#)); do
  case $1 in
    --rehearse) rehearse=yes; shift; continue ;;
    --help | -h) usage; exit 0 ;;
    --) shift; more=("$@"); break ;;
    --pack | --out | --only | --dataset | --study | --speed-minutes | --study-minutes) (($# > 1)) || fail "$1: a value is missing" ;;
    *) fail "$1: no such option; see --help" ;;
  esac
  case $1 in
    --pack) pack=$2 ;;
    --out) out=$2 ;;
    --only) [[ $2 == speed || $2 == study ]] || fail "--only $2: expected speed or study"; parts=$2 ;;
    --dataset) dataset=$2 ;;
    --study)
      [[ $2 == pgd-accelerator || $2 == data-fraction ]] || fail "--study $2: expected pgd-accelerator or data-fraction"
      study_name=$2 ;;
    *) [[ $2 =~ ^[0-9]+(\.[0-9]+)?$ && $2 =~ [1-9] ]] || fail "$1 $2: expected a number of minutes above 0"
      if [[ $1 == --speed-minutes ]]; then speed=$2; else study=$2; fi ;;
  esac
  shift 2
done
: "${speed:=$([[ $rehearse ]] && echo 4 || echo 5)}" "${study:=$([[ $rehearse ]] && echo 5 || echo 7)}"

check_pack() {
  local size absent="no pack in $pack: run make accelerator-pack"
  [[ -s $pack/datasets.txt ]] || fail "$absent"
  compgen -G "$pack/wheels/*.whl" >/dev/null || fail "$absent: it holds no wheels"
  pack=$(cd "$pack" && pwd)
  size=$(find "$pack" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
  ((size <= most_pack)) || fail "the pack is too large: $((size >> 20)) MiB, of $((most_pack >> 20))"
  [[ $dataset ]] || read -r dataset <"$pack/datasets.txt"
  [[ -e $pack/datasets/$dataset ]] || fail "no dataset $dataset in the pack; it holds: $(paste -sd ' ' "$pack/datasets.txt")"
  case $dataset in *.hdf5 | *.h5 | *.npz) dataset=$pack/datasets/$dataset ;; esac
}

# Puts FILE into the folder that comes back, as NAME; compressed if it is too large, and left out if that does not suffice.
keep() { # FILE NAME
  local size
  size=$(stat -c %s "$1" 2>/dev/null) || return 0
  if ((size <= most_file)); then
    cp "$1" "$out/$2" || echo "left out: $2 could not be copied" >&2
    return
  fi
  [[ $ended ]] || return 0
  rm -f "$out/$2"
  gzip -c "$1" >"$out/$2.gz"
  (($(stat -c %s "$out/$2.gz") <= most_file)) || { rm -f "$out/$2.gz"; echo "left out: $2 is too large" >&2; }
}

# What the parts have written so far. Repeated while they run, so that it is there even if all of this is killed.
collect() {
  local name folder
  for name in speed.json speed.txt; do keep "$work/speed/$name" "$name"; done
  for name in speed.log study.log; do keep "$work/$name" "$name"; done
  for folder in "$work"/studies/*/; do # one study; its report holds its figures
    for name in results.csv by_step.csv tables.txt report.html; do keep "$folder$name" "study_$name"; done
  done
}

finish() {
  local status=$? count
  trap '' INT TERM HUP
  set +e
  [[ $child ]] && { kill "$child" 2>/dev/null; wait "$child" 2>/dev/null; }
  ended=yes
  collect
  rm -rf "$work"
  find "$out" -type f -printf '%9s bytes  %f\n' | sort -k 3
  count=$(find "$out" -type f | wc -l)
  ((count <= most_files)) || echo "warning: $out holds $count files, of which $most_files were to come back" >&2
  exit "$status"
}

skipped() { # NAME
  local count
  [[ $1 == speed ]] || return 0
  count=$(grep -c ': skipped,' "$work/speed/speed.txt") || return 0
  echo ", but for $count rows, for which no time was left"
}

run_part() { # NAME MINUTES COMMAND...
  local name=$1 minutes=$2 limit status=0
  shift 2
  limit=$(awk -v minutes="$minutes" -v slack="$slack" 'BEGIN { printf "%d", minutes * 60 + slack }')
  echo "$name: $minutes minutes, $limit seconds at most"
  { echo "$device"; echo "$*"; } >"$work/$name.log"
  timeout --kill-after="$kill_after" "$limit" "$@" >>"$work/$name.log" 2>&1 &
  child=$!
  while kill -0 "$child" 2>/dev/null; do
    collect
    sleep 2
  done
  wait "$child" || status=$?
  child=""
  ((status == 0)) && { echo "$name: done$(skipped "$name")"; return; }
  if ((status == 124 || status == 137)); then echo "$name: stopped at its limit"; else echo "$name: failed ($status)"; fi
  tail -n 5 "$work/$name.log"
  ((status != 2)) || exit 2 # input that cannot be used: nothing else is run
  failed=yes
}

check_python() {
  local tag mine
  tag=$(find "$pack/wheels" -name '*-cp3*-cp3*.whl' | sed -n 's/.*-\(cp3[0-9]*\)-cp3.*/\1/p' | sort -u | head -n 1)
  mine=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])' 2>/dev/null) || fail "$python cannot be run"
  [[ -z $tag || $tag == "$mine" ]] ||
    fail "$python is ${mine/cp3/Python 3.}, the pack is for ${tag/cp3/Python 3.}: PYTHON names another interpreter"
  "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("jax") is None)' ||
    fail "$python has no JAX: it has to be installed there, with what its accelerator needs"
}

check_pack
check_python
mkdir -p "$out" 2>/dev/null || fail "--out $out: expected a folder that can be written"
out=$(cd "$out" && pwd)
for part in $parts; do rm -f "$out/$part".* "$out/${part}"_*; done
work=$(mktemp -d) child="" failed="" ended=""
mkdir "$work/speed" "$work/studies"
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

"$python" -m pip --isolated install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
  --target "$work/site" "$pack"/wheels/*.whl >"$work/install.log" 2>&1 ||
  fail "pip cannot install the pack's wheels: $(tail -n 1 "$work/install.log")"
cd "$root"
export PYTHONPATH=$work/site:$root PYTHONNOUSERSITE=1 PYTHONUNBUFFERED=1 MPLBACKEND=Agg
export MINARI_DATASETS_PATH=$pack/datasets XDG_CACHE_HOME=$work/cache CUDA_CACHE_PATH=$work/cache/cuda
# One process at a time has the accelerator, so each takes JAX's usual three quarters of its memory at once (60 of 80 GB):
# nothing is asked of the driver while time is measured, and a quarter is left to the libraries' workspaces and to captured
# graphs. Set here so that no variable from outside changes a number.
export XLA_PYTHON_CLIENT_PREALLOCATE=true XLA_PYTHON_CLIENT_MEM_FRACTION=0.75
toy=() scale=accelerator
if [[ $rehearse ]]; then
  export JAX_PLATFORMS=cpu
  toy=(--rehearse) scale=rehearsal
fi
device=$("$python" -m benchmarks.accelerator_check "${toy[@]}" 2>"$work/check.log") ||
  fail "$(tail -n 1 "$work/check.log" | sed 's/^error: //')"
echo "$device"

for part in $parts; do
  case $part in
    speed)
      run_part speed "$speed" "$python" -m benchmarks accelerator \
        --minutes "$speed" --out "$work/speed/speed.json" "${toy[@]}" ;;
    study)
      # Products by cuBLAS alone: Triton's are up to an eighth faster, and tuning them takes longer than a short study can give.
      run_part study "$study" env XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_triton_gemm=false" "$python" -m jaxpgd.experiment.cli study "$study_name" \
        --scale "$scale" --minutes "$study" --data.name "$dataset" --out "$work/studies" "${more[@]}" ;;
  esac
done
[[ ! $failed ]] || exit 1
