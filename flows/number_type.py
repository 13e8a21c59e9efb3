"""`dtype: auto`: which number type learner and engine compute in, decided once, before a campaign's first commit.

The config that the campaign is stored with has what was decided, so all that comes later, here or on another machine,
takes it from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from flows.cost import CARDS, known_card
from flows.memory import policy_shape, published_shape
from infra.store import campaign_exists, find_campaign, location, read_config
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError, DataError
from opid_core.hub import policy_folder
from opid_core.policy_check import check_policy_folder
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

Choices: TypeAlias = Mapping[str, Mapping[str, str | float]]
"""Values for a config, by section and key."""


def decided(
    config: CampaignConfig, tell: Callable[[str], None], *, folder: Path | None = None, card: str | None = None
) -> CampaignConfig:
    """`config` with what its `auto` stands for: see `choices`."""
    return with_choices(config, choices([config], tell, folder=folder, card=card))


def choices(
    configs: Sequence[CampaignConfig],
    tell: Callable[[str], None],
    *,
    folder: Path | None = None,
    card: str | None = None,
) -> Choices:
    """What `auto` stands for in `configs`, campaigns that have the same policy, learner and engine; empty where nothing
    is `auto`.

    The types of the sections whose `dtype` is `auto` are those that the first of the campaigns in the store has, else
    what this machine (or the `card` of a data sheet) computes fastest in, for the policy in `folder` (None: the
    config's). Where bfloat16 is among them, an `engine.canary_tolerance` too narrow for it becomes the stored one, else
    `TOLERANCE`. `tell` hears what was chosen, and why.

    Raises ConfigError for a policy that cannot be read, and where the campaign would run on a cluster; DataError for a
    store with another value; InfrastructureError where the store or the hub is away.
    """
    config = configs[0]
    sections = [section for section in TYPES if getattr(config, section).dtype == AUTO]
    if not sections:
        return {}
    begun = next((one for one in configs if campaign_exists(one.root, one.campaign, one.storage.endpoint_url)), None)
    if begun is None:
        types, why = _chosen(config, sections, folder, card)
        tell(f"dtype auto: {_worded(types)}: {why}")
        tolerance = TOLERANCE
    else:
        types, tolerance = _stored(begun, sections)
        tell(f"dtype auto: {_worded(types)}, as campaign {begun.campaign} began")
    chosen: dict[str, dict[str, str | float]] = {section: {"dtype": dtype} for section, dtype in types.items()}
    if "bfloat16" in types.values() and config.engine.canary_tolerance < TOLERANCE / 2:
        chosen.setdefault("engine", {})["canary_tolerance"] = tolerance
    return chosen


def with_choices(config: CampaignConfig, chosen: Choices) -> CampaignConfig:
    """`config` with what was `chosen`."""
    if not chosen:
        return config
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in chosen.items()}
    return config.model_copy(update=sections)


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


def _chosen(
    config: CampaignConfig, sections: Sequence[str], folder: Path | None, card: str | None
) -> tuple[dict[str, str], str]:
    """The types of `sections` on this machine or `card`, and why they are that."""
    if config.cluster.address is not None:
        raise ConfigError(
            f"{sections[0]}.dtype: auto is decided by what this machine measures, and the campaign would run on the "
            f"nodes of cluster.address; set {' and '.join(f'{section}.dtype' for section in sections)} to float32 or "
            "bfloat16"
        )
    dtype, why = _of_gpu(card) or _of_cpu(_shape(config, folder))
    return dict.fromkeys(sections, dtype), why


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


def _stored(config: CampaignConfig, sections: Sequence[str]) -> tuple[dict[str, str], float]:
    """The types of `sections` and `engine.canary_tolerance` that the campaign began with."""
    store = find_campaign(config.root, config.campaign, config.storage.endpoint_url)
    values = read_config(store)

    def wrong(key: str, expected: str, value: object) -> DataError:
        return DataError(f"{location(store, 'config.json')}: {key}: expected {expected}, got {value!r}")

    types = {section: values.get(section, {}).get("dtype") for section in sections}
    for section, dtype in types.items():
        if dtype not in TYPES[section]:
            raise wrong(f"{section}.dtype", ", ".join(TYPES[section]), dtype)
    tolerance = values.get("engine", {}).get("canary_tolerance")
    if not isinstance(tolerance, int | float) or isinstance(tolerance, bool) or not tolerance > 0:
        raise wrong("engine.canary_tolerance", "a number > 0", tolerance)
    return types, tolerance


def _worded(types: Mapping[str, str]) -> str:
    return ", ".join(f"{section} {dtype}" for section, dtype in types.items())
