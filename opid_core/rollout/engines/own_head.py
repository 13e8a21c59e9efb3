"""An output layer of its own for a tied policy in vLLM, which else keeps the old one when new weights are pushed.

vLLM's CPU build packs the output layer into a tensor of its own when it loads: new embeddings never reach that one. So
a tied policy is played as an untied one, and the one tensor that is stored or trained fills both parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opid_core.architectures import is_one_of
from opid_core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

LOAD_FORMAT = "opid_own_head"
NamedWeights = Iterable[tuple[str, "Tensor"]]


def with_own_head(weights: NamedWeights, tied: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """`weights`, and at their end each of the `tied` parameters that is not among them, with the value of one that is.

    Raises DataError where none of them is there. Without `tied` parameters these are `weights` as they are.
    """
    missing, value = list(tied), None
    for name, tensor in weights:
        if is_one_of(name, tied):
            missing, value = [one for one in missing if not is_one_of(name, [one])], tensor
        yield name, tensor
    for name in missing:
        if value is None:
            raise DataError(f"weight push: neither of the tied weights {' and '.join(tied)} is there")
        yield name, value


def engine_arguments(weights: Callable[[Path], NamedWeights], tied: Sequence[str]) -> dict[str, Any]:
    """What makes vLLM's `EngineArgs` load the `weights` of a folder into an untied model, its output layer filled too;
    those of another folder, when that is pushed, in the same way."""
    from vllm.model_executor.model_loader import DefaultModelLoader, register_model_loader

    class Loader(DefaultModelLoader):
        def __init__(self, load_config: Any) -> None:
            super().__init__(replace(load_config, load_format="hf"))

        def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, Tensor]]:
            return with_own_head(weights(Path(model_config.model)), tied)

    register_model_loader(LOAD_FORMAT)(Loader)
    return {"load_format": LOAD_FORMAT, "hf_overrides": {"tie_word_embeddings": False}}
