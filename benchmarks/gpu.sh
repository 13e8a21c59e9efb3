#!/usr/bin/env bash
# What a CPU cannot show, on one GPU of 80 GB: bash benchmarks/gpu.sh > gpu.md. Ten minutes as estimated; it has not run there yet.
# `bash benchmarks/gpu.sh --try` runs the same on a CPU with tiny policies: to see that the script works, not for numbers.
#
# Not in it, because not built: weights pushed from memory to memory.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ "${1:-}" = --try ]; then
    shapes=(tiny tiny-lora --packed tiny --samples 4)
    sharing=(tiny --samples 4)
    replicas=(--episodes 16 --turns 3 --repeat 1)
    campaign=(configs/tiny_alfworld.yaml --set campaign=gpu --set iterations=1)
else
    shapes=(0.5B 3B 3B-lora 7B-lora --packed 0.5B 3B)
    sharing=(0.5B 3B)
    replicas=(--large --repeat 2)
    campaign=(configs/quickstart.yaml --set campaign=gpu --set iterations=1 --set evaluation.tasks=20)
fi

echo "Commit $(git rev-parse --short HEAD), $(nproc) cores."
echo
echo "## The learner, by size; micro-batches padded and packed"
echo
timeout 420 "$python" -m benchmarks.learner_shapes "${shapes[@]}"

echo
echo "## ZeRO stages, resume, out of memory"
echo
if [ "${1:-}" = --try ]; then
    echo "Left out: needs a GPU."
else
    timeout 150 "$python" -m benchmarks.learner_gpu
fi

echo
echo "## Engine and learner with the card in turns: sleep and wake, leave and come back"
echo
timeout 200 "$python" -m benchmarks.share_gpus "${sharing[@]}"

echo
echo "## Two replicas on one card against one"
echo
timeout 150 "$python" -m benchmarks.replicas "${replicas[@]}"

# A campaign that is killed as it re-scores, and resumed: the learner is on the card first, the engine comes later.
killed_and_resumed() {
    local root="$work/$1" first since
    local train=("$python" -m flows.cli train "${campaign[@]}" --set "root=$root" --set recovery.lease_ttl_s=3 "${@:2}")
    mkdir "$root"
    setsid timeout --foreground 240 "${train[@]}" > "$root/first.log" 2>&1 &
    first=$!
    until [ -e "$root/gpu/_stages/000001/000/route.json" ]; do
        kill -0 "$first" 2> /dev/null || { tail -n 40 "$root/first.log" >&2; exit 1; }
        sleep 0.1
    done
    kill -9 -- "-$first"
    wait "$first" 2> /dev/null || true
    since=$(date +%s)
    timeout 180 "${train[@]}" > "$root/second.log" 2>&1 || { tail -n 40 "$root/second.log" >&2; exit 1; }
    echo "Resumed and committed in $(($(date +%s) - since)) s, after $(find "$root/gpu/_stages/000001" -name failed.json | wc -l) attempts that were given up."
    "$python" -m flows.cli verify gpu --root "$root"
}

echo
echo "## A campaign, killed as it re-scores, resumed: the learner is on the card first, the engine comes beside it"
echo
killed_and_resumed beside

echo
echo "## The same with the card in turns (engine.share_gpus)"
echo
if [ "${1:-}" = --try ]; then
    echo "Left out: needs a GPU."
else
    killed_and_resumed turns --set engine.share_gpus=true --set engine.gpu_memory_fraction=0.85
fi
