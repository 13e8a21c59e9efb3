"""Which causal architectures of the installed transformers are scored as their own forward pass computes.

    python -m benchmarks.architectures [NAME ...]

Makes a tiny random model of each (all of them where none is named), compares, with logits at once and in parts, and
prints a Markdown table and the names that `opid_core/architectures.py` may list, also of those that
`learner.shared_prefixes` computes right. Wrappers of several models and decoders of encoders are left out.
"""

from __future__ import annotations

import sys
import warnings
from unittest.mock import patch

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from opid_core.learning.shared_prefixes import ATTENTION
from opid_core.policy_shape import shape_of
from tests.architectures import gap, sharing_gap, tiny_config, tiny_model

TOLERANCE = 1e-4
SHARING_TOLERANCE = 1e-5
LARGEST = 30_000_000
"""Parameters of what still counts as tiny."""


def verdict(model_type: str) -> tuple[str, str]:
    """(`equal`, `differs`, `left out` or `not tried`, and how much or why)."""
    try:
        config = tiny_config(model_type)
    except Exception as error:
        return "not tried", f"no tiny config: {_first_line(error)}"
    if config.is_encoder_decoder:
        return "left out", "the decoder of an encoder"
    if config.get_text_config() is not config:
        return "left out", "wraps several models"
    try:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
        if empty.num_parameters() > LARGEST:
            return "not tried", f"{empty.num_parameters() / 1e6:.0f}M parameters"
        shape_of(empty)
        model = tiny_model(config)
        nats = max(gap(model), gap(model, in_parts=True))
    except Exception as error:
        return "not tried", _first_line(error)
    return ("equal" if nats < TOLERANCE else "differs"), f"{nats:.1e}"


def shares_prefixes(model_type: str) -> bool:
    """Whether sharing prefixes changes nothing in the architecture, as its config is by default but for sizes."""
    config = tiny_config(model_type)
    if {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}:
        return False
    model = tiny_model(config)
    try:
        with patch("opid_core.learning.shared_prefixes.check_sharing"):
            nats = sharing_gap(model)
    except Exception as error:  # whatever the architecture's own code raises for packed sequences
        print(f"{model_type} shares no prefixes: {_first_line(error)}", file=sys.stderr)
        return False
    # Models that do not look up their attention by its name keep their own.
    return model.config._attn_implementation == ATTENTION and nats < SHARING_TOLERANCE


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().replace("|", "/").splitlines()[0][:90]


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    equal, sharing = [], []
    print("| model_type | scored | nats at most, or why |\n|---|---|---|")
    for model_type in sys.argv[1:] or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if model_type not in CONFIG_MAPPING:
            continue
        result, note = verdict(model_type)
        print(f"| {model_type} | {result} | {note} |", flush=True)
        if result == "equal":
            equal.append(model_type)
            if shares_prefixes(model_type):
                sharing.append(model_type)
    print(
        f"\ntransformers {transformers.__version__}, torch {torch.__version__}; "
        f"{len(equal)} equal:\n{' '.join(equal)}\n\n"
        f"{len(sharing)} of them share prefixes:\n{' '.join(sharing)}"
    )


if __name__ == "__main__":
    main()
