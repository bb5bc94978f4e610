#!/bin/sh
# All that has to be run where there is a CUDA device, the shortest first:
#
#     on_device.sh [check] [quick] [tests] [profile] [memcheck] [racecheck] [ncu]
#
# check    every kernel against its twin, and a torus: a minute, says what is wrong
# quick    the profile of one small grid: a first result
# tests    what is marked gpu
# profile  every kernel and job with its peers: result and picture
# memcheck, racecheck  NVIDIA's checks of what `check` launches
# ncu      the hardware's counters of the kernels of job R
#
# PYTHON is the interpreter (.venv's, else python3); it needs CuPy, pytest and the package's own
# requirements, not the package. OUT is the folder of the results (studies/results). Each part is
# stopped after ten minutes and leaves a log beside the results; the exit status is how many failed.
set -u
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
OUT=${OUT:-studies/results}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
STUDY="$PYTHON studies/profile_kernels.py --device cuda"
HOT='regex:advect_tiles|seed_closest|grow_closest|improve_closest|next_layer|collect_tiles'
failed=0
mkdir -p "$OUT"

part() {  # name, command...
    name=$1
    shift
    echo "== $name: $*"
    if timeout 580 "$@" > "$OUT/on_device-$name.log" 2>&1; then
        tail -n 3 "$OUT/on_device-$name.log"
    else
        echo "$name failed: $OUT/on_device-$name.log"
        tail -n 20 "$OUT/on_device-$name.log"
        failed=$((failed + 1))
    fi
}

with() {  # program, name, command...: only where the program is
    if command -v "$1" > /dev/null; then
        shift
        part "$@"
    else
        echo "== $2: no $1 here"
    fi
}

nvidia-smi || { echo "no CUDA device here"; exit 1; }
# shellcheck disable=SC2086
for what in ${*:-check quick tests profile memcheck racecheck ncu}; do
    case $what in
        check) part check $STUDY --check ;;
        quick) part quick $STUDY --quick -o "$OUT" ;;
        tests) part tests "$PYTHON" -m pytest -m gpu --durations=10 tests/kernels ;;
        profile) part profile $STUDY -o "$OUT" ;;
        memcheck | racecheck)
            with compute-sanitizer "$what" compute-sanitizer --tool "$what" --error-exitcode 9 \
                $STUDY --check ;;
        ncu)
            # Launches one by one in a range that the profile names; graphs would hide them.
            with ncu ncu ncu --set full --clock-control none --import-source yes \
                --nvtx --nvtx-include "job R without graph/" --kernel-name "$HOT" \
                --launch-count 30 -f -o "$OUT/on_device-counters" \
                $STUDY --quick -o "$(mktemp -d)" ;;  # its times are those of a program that is watched
        *) echo "unknown part: $what"; failed=$((failed + 1)) ;;
    esac
done
exit "$failed"
