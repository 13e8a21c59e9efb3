#!/usr/bin/env bash
# What a CPU cannot show, on one GPU of 80 GB: bash benchmarks/gpu.sh > gpu.md. Meant for ten minutes; it has not run there yet.
# `bash benchmarks/gpu.sh --try` runs the same on a CPU with tiny policies: to see that the script works, not for numbers.
#
# Not in it, because not built: engine and learner that give their memory to each other (sleep, offload), weights pushed
# from memory to memory, several replicas on one card, packed micro-batches.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ "${1:-}" = --try ]; then
    shapes=(tiny tiny-lora --samples 4)
    campaign=(configs/tiny_alfworld.yaml --set campaign=gpu --set iterations=1)
else
    shapes=(0.5B 3B 3B-lora 7B-lora)
    campaign=(configs/quickstart.yaml --set campaign=gpu --set iterations=1 --set evaluation.tasks=20)
fi

echo "Commit $(git rev-parse --short HEAD), $(nproc) cores."
echo
echo "## The learner, by size"
echo
timeout 300 "$python" -m benchmarks.learner_shapes "${shapes[@]}"

if [ "${1:-}" != --try ]; then
    echo
    echo "## ZeRO stages, resume, out of memory"
    echo
    timeout 150 "$python" -m benchmarks.learner_gpu
fi

echo
echo "## A campaign, killed as it re-scores, resumed: the learner is on the card first, the engine comes beside it"
echo
train=("$python" -m flows.cli train "${campaign[@]}" --set "root=$work" --set recovery.lease_ttl_s=3)
setsid timeout --foreground 240 "${train[@]}" > "$work/first.log" 2>&1 &
first=$!
until [ -e "$work/gpu/_stages/000001/000/route.json" ]; do
    kill -0 "$first" 2> /dev/null || { tail -n 40 "$work/first.log" >&2; exit 1; }
    sleep 0.1
done
kill -9 -- "-$first"
wait "$first" 2> /dev/null || true
since=$(date +%s)
timeout 180 "${train[@]}" > "$work/second.log" 2>&1 || { tail -n 40 "$work/second.log" >&2; exit 1; }
echo "Resumed and committed in $(($(date +%s) - since)) s, after $(find "$work/gpu/_stages/000001" -name failed.json | wc -l) attempts that were given up."
"$python" -m flows.cli verify gpu --root "$work"
