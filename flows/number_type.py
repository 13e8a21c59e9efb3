"""`dtype: auto`: which number type learner and engine compute in, decided once, before a campaign's first commit.

The config that the campaign is stored with has what was decided, so all that comes later, here or on another machine,
takes it from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from flows.cost import CARDS, known_card
from flows.memory import planned_shape
from infra.store import campaign_exists, find_campaign, location, read_config
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError, DataError
from opid_core.policy_shape import PolicyShape, count_parameters

AUTO = "auto"
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


def decided(
    config: CampaignConfig, tell: Callable[[str], None], *, folder: Path | None = None, card: str | None = None
) -> CampaignConfig:
    """`config` with the types that its `auto` stands for: see `types_of` and `with_types`."""
    return with_types(config, types_of([config], tell, folder=folder, card=card))


def types_of(
    configs: Sequence[CampaignConfig],
    tell: Callable[[str], None],
    *,
    folder: Path | None = None,
    card: str | None = None,
) -> dict[str, str]:
    """The types of the sections whose `dtype` is `auto`, of campaigns with the same one: what the first of them that
    is in the store has, else what this machine (or the `card` of a data sheet) computes fastest in, for the policy in
    `folder` (None: the config's). `tell` hears what was chosen, and why.

    Empty where nothing is `auto`, or where the policy cannot be read: the checks of a campaign say what is wrong with
    it. Raises ConfigError where the campaign would run on a cluster, DataError for a store with another value.
    """
    config = configs[0]
    sections = [section for section in TYPES if getattr(config, section).dtype == AUTO]
    if not sections:
        return {}
    for one in configs:
        where = one.root, one.campaign, one.storage.endpoint_url
        if campaign_exists(*where):
            types = {section: _stored_type(one, section) for section in sections}
            tell(f"dtype auto: {_worded(types)}, as campaign {one.campaign} began")
            return types
    if config.cluster.address is not None:
        raise ConfigError(
            f"{sections[0]}.dtype: auto is decided by what this machine measures, and the campaign would run on the "
            f"nodes of cluster.address; set {' and '.join(f'{section}.dtype' for section in sections)} to float32 or "
            "bfloat16"
        )
    shape = planned_shape(config) if folder is None else count_parameters(folder, config.warm_start)
    if shape is None:
        return {}
    chosen, why = _fastest(shape, card)
    types = dict.fromkeys(sections, chosen)
    tell(f"dtype auto: {_worded(types)}: {why}")
    return types


def with_types(config: CampaignConfig, types: Mapping[str, str]) -> CampaignConfig:
    """`config` with the `dtype` of each section in `types`. With bfloat16 in learner or engine,
    an `engine.canary_tolerance` that is too narrow becomes `TOLERANCE`."""
    if not types:
        return config
    changed = {name: getattr(config, name).model_copy(update={"dtype": dtype}) for name, dtype in types.items()}
    config = config.model_copy(update=changed)
    if is_narrow(config):
        engine = config.engine.model_copy(update={"canary_tolerance": TOLERANCE})
        config = config.model_copy(update={"engine": engine})
    return config


def is_narrow(config: CampaignConfig) -> bool:
    """Whether learner or engine compute in bfloat16 with less than half of `TOLERANCE` between them, as float32 has:
    the first comparison of both would end the run."""
    in_bfloat16 = "bfloat16" in (config.learner.dtype, config.engine.dtype)
    return in_bfloat16 and config.engine.canary_tolerance < TOLERANCE / 2


def fastest(rates: Mapping[str, float]) -> str:
    """bfloat16 where its rate is at least `FASTER` times that of float32, else float32. `rates`: in one unit."""
    return "bfloat16" if rates["bfloat16"] >= FASTER * rates["float32"] else "float32"


def measured_rates(sizes: Iterable[tuple[int, int]]) -> dict[str, float]:
    """FLOP/s of one CPU thread in bare products with layers of `sizes` (inputs, outputs), by number type.

    One thread, by its own CPU time: several wait for each other, so that on a busy machine chance would decide. A pass
    is one product with every layer, of ever more rows until it takes long enough; the types take turns, and the fastest
    pass of each counts. Some tenths of a second in all.
    """
    import torch

    layers = sorted({(min(inputs, _WIDEST), min(outputs, _WIDEST)) for inputs, outputs in sizes})
    threads, rows = torch.get_num_threads(), _FEWEST_ROWS
    if threads != 1:
        torch.set_num_threads(1)
    try:
        while max((seconds := _seconds(layers, rows)).values()) < _PASS_S and rows < _MOST_ROWS:
            rows *= 2
    finally:
        if threads != 1:
            torch.set_num_threads(threads)
    flops = 2 * rows * sum(inputs * outputs for inputs, outputs in layers)
    return {dtype: flops / spent_s for dtype, spent_s in seconds.items()}


def _seconds(layers: Sequence[tuple[int, int]], rows: int) -> dict[str, float]:
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
            since_s = time.thread_time()
            for values, weights in factors:
                torch.nn.functional.linear(values, weights)
            fastest_s[dtype] = min(fastest_s[dtype], time.thread_time() - since_s)
    return {str(dtype).removeprefix("torch."): seconds for dtype, seconds in fastest_s.items()}


def _fastest(shape: PolicyShape, card: str | None) -> tuple[str, str]:
    """The type and why it is that, for a policy of `shape`."""
    import torch

    if card is not None and not CARDS[known_card(card)].is_cpu:
        return "bfloat16", f"a card such as {known_card(card)} computes in it"
    if card is None and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "this machine's GPU computes in it"
        return "float32", "this machine's GPU does not compute in bfloat16"
    sizes = {(one.inputs, one.outputs) for one in shape.linear} or {(shape.hidden_size, shape.hidden_size)}
    rates = measured_rates(sizes)
    float32, bfloat16 = rates["float32"], rates["bfloat16"]
    return fastest(rates), (
        f"a CPU thread multiplies the policy's layers at {float32 / 1e9:.3g} GFLOP/s in float32 and "
        f"{bfloat16 / 1e9:.3g} in bfloat16, {bfloat16 / float32:.2g} times as fast (bfloat16 from {FASTER:g} on)"
    )


def _stored_type(config: CampaignConfig, section: str) -> str:
    store = find_campaign(config.root, config.campaign, config.storage.endpoint_url)
    dtype = read_config(store).get(section, {}).get("dtype")
    if dtype not in TYPES[section]:
        raise DataError(
            f"{location(store, 'config.json')}: {section}.dtype: expected {', '.join(TYPES[section])}, got {dtype!r}"
        )
    return dtype


def _worded(types: Mapping[str, str]) -> str:
    return ", ".join(f"{section} {dtype}" for section, dtype in types.items())
