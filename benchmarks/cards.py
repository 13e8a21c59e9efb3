"""What fits on one card, in full training and with LoRA, by the estimate of the dry run: the table of docs/lora.md.

    python -m benchmarks.cards

Settings are those of configs/alfworld_qwen2.5_3b_lora_24gb.yaml (bfloat16, gradient checkpointing, KL to the reference)
with micro-batches of one longest sequence, and an engine with room for a few of those. No GPU is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

from flows.memory import estimate
from opid_core.config import CampaignConfig, load_config
from opid_core.policy_shape import KNOWN_SHAPES

CARDS_GB = (12, 16, 24, 48, 80)
MODELS = ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen3-1.7b", "qwen2.5-3b", "qwen3-4b", "qwen2.5-7b", "qwen3-8b")
SEQUENCES = 8
"""Longest sequences that the engine's cache holds at once."""
BASE = "configs/alfworld_qwen2.5_3b_lora_24gb.yaml"


def configs() -> tuple[CampaignConfig, CampaignConfig]:
    """Full training, and LoRA."""
    lora = load_config(BASE, ["environment.options={}"])
    longest = lora.rollout.max_prompt_tokens + lora.rollout.max_response_tokens
    lora = lora.model_copy(update={"learner": lora.learner.model_copy(update={"micro_batch_tokens": longest})})
    return lora.model_copy(update={"learner": lora.learner.model_copy(update={"lora": None})}), lora


def needed_gb(config: CampaignConfig, model: str) -> float:
    """GB (10^9 bytes) of one card for learner and engine side by side, whatever their shares of it."""
    memory = estimate(config, KNOWN_SHAPES[model])
    return (memory.learner_mib + memory.engine_weights_mib + SEQUENCES * memory.one_sequence_mib) * 2**20 / 1e9


def smallest_card(gb: float, cards: Sequence[int] = CARDS_GB) -> str:
    """The smallest card of at least `gb` in words."""
    return next((f"{card} GB" for card in cards if gb <= card), "none")


def lines() -> list[str]:
    """The table in Markdown."""
    table = ["| model | full training | card | LoRA | card |", "|---|---|---|---|---|"]
    for model in MODELS:
        needed = [needed_gb(config, model) for config in configs()]
        cells = [cell for gb in needed for cell in (f"{gb:.1f} GB", smallest_card(gb))]
        table.append(f"| {model} | {' | '.join(cells)} |")
    return table


if __name__ == "__main__":
    print("\n".join(lines()))
