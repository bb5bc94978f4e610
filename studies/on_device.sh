#!/bin/sh
# All that has to be run where there is a CUDA device: on_device.sh [tests] [profile] [sanitize] [ncu].
#
# PYTHON is the interpreter (.venv's, else python3), OUT the folder of the results (studies/results).
# Each part ends within ten minutes and leaves a log beside the results; the exit status is how many
# parts failed.
set -u
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
OUT=${OUT:-studies/results}
PROFILE="$PYTHON -m vesselseg profile --device cuda --quick"
HOT='regex:advect_tiles|reinit_tiles|grow_closest|sheet_system|wall_geometry'
failed=0
mkdir -p "$OUT"

part() {  # name, command...
    name=$1
    shift
    echo "== $name: $*"
    if timeout 590 "$@" > "$OUT/on_device-$name.log" 2>&1; then
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
for what in ${*:-tests profile sanitize ncu}; do
    case $what in
        tests) part tests "$PYTHON" -m pytest -m gpu --durations=10 tests ;;
        profile) part profile "$PYTHON" studies/profile_kernels.py --device cuda -o "$OUT" ;;
        sanitize)
            for tool in memcheck racecheck; do
                # shellcheck disable=SC2086
                with compute-sanitizer "$tool" compute-sanitizer --tool "$tool" $PROFILE
            done ;;
        ncu)
            # shellcheck disable=SC2086
            with ncu counters ncu --set full --clock-control none --import-source yes \
                --kernel-name "$HOT" --launch-count 12 -f -o "$OUT/on_device-counters" $PROFILE ;;
        *) echo "unknown part: $what"; failed=$((failed + 1)) ;;
    esac
done
exit "$failed"
