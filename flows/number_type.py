"""`dtype: auto`: which number type learner and engine compute in, where nothing is decided yet (`flows.auto`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from flows.cost import CARDS, known_card
from flows.memory import policy_shape, published_shape
from opid_core.config import CampaignConfig
from opid_core.hub import policy_folder
from opid_core.policy_check import check_policy_folder
from opid_core.policy_shape import PolicyShape, count_parameters

TYPES = {"learner": ("float32", "bfloat16"), "engine": ("float32", "bfloat16", "float16")}
"""By section, what its `dtype` may be decided to."""
FASTER = 1.5
"""How many times as fast products must be in bfloat16. They are a part of the work and all else gains nothing: where
they are half of it, products 1.5 times as fast make the whole 1.2 times as fast. Less is not worth rounding to three
digits and a canary a hundred times as wide."""
TOLERANCE = 0.1
"""What `engine.canary_tolerance` becomes where `auto` chose bfloat16 and the config has less than half of it."""
_WIDEST, _FEWEST_ROWS, _MOST_ROWS = 1024, 16, 4096
"""Of matrices that are multiplied: larger ones take longer, and give the same ratio of both types."""
_PASS_S, _PASSES = 0.03, 3


def is_narrow(config: CampaignConfig) -> bool:
    """Whether learner or engine compute in bfloat16 with less than half of `TOLERANCE` between them, as float32 has:
    the first comparison of both would end the run."""
    in_bfloat16 = "bfloat16" in (config.learner.dtype, config.engine.dtype)
    return in_bfloat16 and config.engine.canary_tolerance < TOLERANCE / 2


def fastest(rates: Mapping[str, float]) -> str:
    """bfloat16 where its rate is at least `FASTER` times that of float32, else float32. `rates`: in one unit."""
    return "bfloat16" if rates["bfloat16"] >= FASTER * rates["float32"] else "float32"


def measured_rates(sizes: Iterable[tuple[int, int]], clock: Callable[[], float] = time.thread_time) -> dict[str, float]:
    """FLOP/s of one CPU thread in bare products with layers of `sizes` (inputs, outputs), by number type.

    One thread, by its own CPU time (`clock`, in seconds): several wait for each other, so that on a busy machine chance
    would decide. A pass is one product with every layer, of ever more rows until it takes long enough; the types take
    turns, and the fastest pass of each counts. Some tenths of a second in all.
    """
    import torch

    layers = sorted({(min(inputs, _WIDEST), min(outputs, _WIDEST)) for inputs, outputs in sizes})
    threads, rows = torch.get_num_threads(), _FEWEST_ROWS
    if threads != 1:
        torch.set_num_threads(1)
    try:
        while max((seconds := _seconds(layers, rows, clock)).values()) < _PASS_S and rows < _MOST_ROWS:
            rows *= 2
    finally:
        if threads != 1:
            torch.set_num_threads(threads)
    flops = 2 * rows * sum(inputs * outputs for inputs, outputs in layers)
    return {dtype: flops / spent_s for dtype, spent_s in seconds.items()}


def _seconds(layers: Sequence[tuple[int, int]], rows: int, clock: Callable[[], float]) -> dict[str, float]:
    """Of the fastest pass, by number type."""
    import torch

    of_type = {
        dtype: [
            (torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype))
            for inputs, outputs in layers
        ]
        for dtype in (torch.float32, torch.bfloat16)
    }
    fastest_s = dict.fromkeys(of_type, float("inf"))
    for _ in range(_PASSES):
        for dtype, factors in of_type.items():
            since_s = clock()
            for values, weights in factors:
                torch.nn.functional.linear(values, weights)
            fastest_s[dtype] = min(fastest_s[dtype], clock() - since_s)
    return {str(dtype).removeprefix("torch."): seconds for dtype, seconds in fastest_s.items()}


def chosen(config: CampaignConfig, folder: Path | None, card: str | None) -> tuple[str, str]:
    """The type on this machine or on the `card` of a data sheet, for the policy in `folder` (None: the config's), and
    why it is that."""
    return _of_gpu(card) or _of_cpu(_shape(config, folder))


def _of_gpu(card: str | None) -> tuple[str, str] | None:
    """The type and why it is that; None for a CPU."""
    import torch

    if card is not None:
        known = known_card(card)
        return None if CARDS[known].is_cpu else ("bfloat16", f"a card such as {known} computes in it")
    if not torch.cuda.is_available():
        return None
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16", "this machine's GPU computes in it"
    return "float32", "this machine's GPU does not compute in bfloat16"


def _of_cpu(shape: PolicyShape) -> tuple[str, str]:
    sizes = {(one.inputs, one.outputs) for one in shape.linear} or {(shape.hidden_size, shape.hidden_size)}
    rates = measured_rates(sizes)
    float32, bfloat16 = rates["float32"], rates["bfloat16"]
    return fastest(rates), (
        f"a CPU thread multiplies the policy's layers at {float32 / 1e9:.3g} GFLOP/s in float32 and "
        f"{bfloat16 / 1e9:.3g} in bfloat16, {bfloat16 / float32:.2g} times as fast (bfloat16 from {FASTER:g} on)"
    )


def _shape(config: CampaignConfig, folder: Path | None) -> PolicyShape:
    if folder is not None:
        check_policy_folder(folder, trained=False, weights=False)
        return count_parameters(folder, config.warm_start)
    if known := published_shape(config):
        return known
    if config.policy is not None:
        check_policy_folder(policy_folder(config.policy, weights=False), weights=False)
    return policy_shape(config)
