"""The learner on one GPU at the sizes of real models, with random weights in bfloat16, all of them trained or LoRA.

    python -m benchmarks.learner_shapes                    # 0.5B, 3B, 3B-lora, 7B-lora
    python -m benchmarks.learner_shapes tiny tiny-lora     # also on a CPU: to try the script
    python -m benchmarks.learner_shapes --packed 0.5B 3B   # then a second table: micro-batches padded and packed

Sequences of 1,500 prompt and 300 response tokens; in the second table of 300 to 1,700 and 50 to 340, without a common
prefix, and each policy with `learner.shared_prefixes` false and true. Times are of the second call. The share of the
card's peak is that of the forward passes (scoring), and of forward and backward (updating; with checkpointing the
second forward pass is no work done, so it lowers the share). MiB: what the card holds beyond what it held before.
Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks.learner_gpu import CONFIG, hosted, make_samples, timed
from flows.cost import CARDS, card_called, flops_a_token
from infra.scratch import scratch_folder
from opid_core.config import LearnerConfig
from opid_core.config.learning import LoraConfig
from opid_core.errors import OutOfMemory
from opid_core.policy_shape import PolicyShape, shape_of
from opid_core.samples import Samples
from tests.factories import make_tokenizer

SHAPES: Mapping[str, Mapping[str, Any]] = {
    # Of Qwen2.5's own config.json.
    "0.5B": {"hidden_size": 896, "layers": 24, "heads": 14, "key_value_heads": 2, "inner": 4864, "tied": True},
    "3B": {"hidden_size": 2048, "layers": 36, "heads": 16, "key_value_heads": 2, "inner": 11008, "tied": True},
    "7B": {"hidden_size": 3584, "layers": 28, "heads": 28, "key_value_heads": 4, "inner": 18944, "vocabulary": 152_064},
    "tiny": {"hidden_size": 64, "layers": 2, "heads": 2, "key_value_heads": 2, "inner": 256, "vocabulary": 32_000},
}
VOCABULARY = 151_936


def write_policy(folder: Path, name: str) -> PolicyShape:
    """A random policy of the named size in `folder`, in bfloat16; its shape."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    size = SHAPES[name]
    config = Qwen2Config(
        vocab_size=size.get("vocabulary", VOCABULARY),
        hidden_size=size["hidden_size"],
        intermediate_size=size["inner"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["key_value_heads"],
        max_position_embeddings=2048,
        tie_word_embeddings=size.get("tied", False),
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    with torch.device("cuda") if torch.cuda.is_available() else nullcontext():
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return shape_of(model)


def used_mib() -> float:
    """What the card holds now, of whichever process; 0 without one."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


def config_of(name: str) -> LearnerConfig:
    """Larger models are trained with gradient checkpointing, as their configs are."""
    size, _, adapters = name.partition("-")
    lora = LoraConfig(rank=32) if adapters else None
    return CONFIG.model_copy(update={"gradient_checkpointing": size in ("3B", "7B"), "lora": lora})


def cells(folder: Path, shape: PolicyShape, config: LearnerConfig, samples: Samples) -> str:
    """Speed and memory of a learner, as the cells of a line."""
    before_mib = used_mib()
    group = hosted(folder, config)
    try:
        sequences = samples.prompt_ids, samples.response_ids
        group.call("score", *sequences)
        _, score_s = timed(lambda: group.call("score", *sequences))
        group.call("update", samples, seed=0)
        _, update_s = timed(lambda: group.call("update", samples, seed=1))
        mib = used_mib() - before_mib
    except OutOfMemory:
        return "out of memory | | | |"
    finally:
        group.kill()
    tokens = sum(len(part.values) for part in sequences)
    forward = tokens * flops_a_token(shape, tokens / len(samples))
    passes = 3 if config.lora is None else 2  # frozen weights get no gradient
    peak = CARDS["CPU"].peak_flops if not torch.cuda.is_available() else card_peak()
    return (
        f"{tokens / score_s:,.0f} | {forward / score_s / peak:.0%} "
        f"| {tokens / update_s:,.0f} | {passes * forward / update_s / peak:.0%} | {mib:,.0f} |"
    )


def row(name: str, samples: Samples) -> str:
    """A line of the first table."""
    with scratch_folder() as folder:
        shape = write_policy(folder, name.partition("-")[0])
        return f"| {name} | {shape.parameters / 1e6:,.0f}M | {cells(folder, shape, config_of(name), samples)}"


def packing_rows(name: str, samples: Samples) -> Iterator[str]:
    """Two lines of the second table: the same samples padded, and packed."""
    with scratch_folder() as folder:
        shape = write_policy(folder, name)
        for shares in (False, True):
            config = config_of(name).model_copy(update={"shared_prefixes": shares})
            yield f"| {name} | {'packed' if shares else 'padded'} | {cells(folder, shape, config, samples)}"


def card_peak() -> float:
    """The data sheet's FLOP/s of this card; an H100's where it has none."""
    return CARDS[card_called(torch.cuda.get_device_name(0)) or "H100"].peak_flops


def print_timed(rows: Iterable[str]) -> None:
    since_s = time.monotonic()
    for one in rows:
        print(f"{one}  <!-- {time.monotonic() - since_s:.0f} s -->", flush=True)
        since_s = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["0.5B", "3B", "3B-lora", "7B-lora"], metavar="SIZE[-lora]")
    parser.add_argument("--packed", nargs="+", default=[], metavar="SIZE", choices=tuple(SHAPES))
    parser.add_argument("--samples", type=int, default=32)
    given = parser.parse_args()
    if unknown := {name for name in given.shapes if name.removesuffix("-lora") not in SHAPES}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(SHAPES)}, each also with -lora")
    sizes = {name.removesuffix("-lora") for name in given.shapes} | {*given.packed}
    if not torch.cuda.is_available() and sizes != {"tiny"}:
        parser.error("these need a GPU; on a CPU there are tiny and tiny-lora")
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor() or "CPU"
    print(f"{device}, torch {torch.__version__}, bfloat16, {given.samples} sequences\n")
    speeds = "tokens/s scored | of peak | tokens/s updated | of peak | MiB |"
    print(f"| policy | parameters | {speeds}\n|---|---|---|---|---|---|---|", flush=True)
    samples = make_samples(given.samples)
    print_timed(row(name, samples) for name in given.shapes)
    if given.packed:
        print(f"\n| policy | micro-batches | {speeds}\n|---|---|---|---|---|---|---|", flush=True)
        samples = make_samples(given.samples, prompts=(300, 1700), responses=(50, 340))
        print_timed(line for name in given.packed for line in packing_rows(name, samples))


if __name__ == "__main__":
    main()
