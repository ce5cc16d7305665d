#!/bin/sh
# Everything that a lent Hopper GPU has to answer, in one command of less than eight minutes.
#
#     benchmarks/h200.sh [FOLDER]      writes FOLDER/results.jsonl (build/h200), a line a section and case
#
# Sections run by priority, each a process of its own with a limit of its own, and none begins after DEADLINE
# seconds. What they do is in h200.py. PYTHON names the interpreter, which has NumPy and, for the peers, torch;
# without a GPU every section says "no device" and ends at once.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../build/h200}
python=${PYTHON:-python3}
deadline=$(($(date +%s) + ${DEADLINE:-470}))
mkdir -p "$out"
: >"$out/results.jsonl"

section() { # name, seconds
    left=$((deadline - $(date +%s)))
    if [ "$left" -lt 10 ]; then
        echo "{\"section\": \"$1\", \"status\": \"no time left\"}" >>"$out/results.jsonl"
        return
    fi
    limit=$2
    [ "$limit" -gt "$left" ] && limit=$left
    timeout -k 5 "$limit" "$python" "$here/h200.py" "$1" "$out" 2>"$out/$1.log" >>"$out/$1.log"
    status=$?
    case $status in
    0) ;;
    124 | 137) echo "{\"section\": \"$1\", \"status\": \"ran past $limit s\"}" >>"$out/results.jsonl" ;;
    *) echo "{\"section\": \"$1\", \"status\": \"ended with $status, see $1.log\"}" >>"$out/results.jsonl" ;;
    esac
}

section environment 20
section build 90
section ceilings 40
section conformance 30
section operations 90
section model 60
section sanitizer 60
section kernels 120
section engine 150
section peers 120
"$python" "$here/h200.py" table "$out"
