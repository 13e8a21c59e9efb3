"""A policy folder as people have it, checked before any work: its files, and its weights against its architecture.

Only small files and the headers of the weights are read; the architecture is built without memory for its weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opid_core.architectures import check_architecture, is_one_of, tied_weights, without_values
from opid_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""Of a LoRA adapter in PEFT's format."""

NUMBER_TYPES = ("F64", "F32", "F16", "BF16")
"""Of weights, as safetensors calls them. Integers and 8-bit floats are somebody's quantised weights: without the config
of the quantisation they would be loaded as the numbers that stand there."""

WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "a data-parallel wrapper",
    "base_model.model.": "PEFT",
}
"""What puts these prefixes before the names of weights."""


def check_policy_folder(folder: str | Path, trained: bool = True, weights: bool = True) -> None:
    """Raise ConfigError that names what is wrong with a base policy folder, whose `weights` are there or not yet.

    A policy that is only played (not `trained`) may be quantised, and of any architecture that the engine takes.
    """
    folder = Path(folder)
    if not folder.exists():
        seen = "" if folder.is_absolute() else f", seen from {Path.cwd()}"
        raise ConfigError(
            f"policy: there is no folder {folder}{seen}; name one with an HF model, or a model of the hub (ORG/NAME)"
            + (", or null for a warm start" if trained else "")
        )
    if not folder.is_dir():
        raise ConfigError(f"policy: {folder} is not a folder; name the folder of an HF model")
    check_entries(folder)
    read_json(folder / "config.json")
    if (folder / "generation_config.json").is_file():
        read_json(folder / "generation_config.json")
    tokenizer_config = read_json(folder / "tokenizer_config.json")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ConfigError(f"policy: {folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json)")
    if not tokenizer_config.get("chat_template") and not (folder / "chat_template.jinja").is_file():
        raise ConfigError(
            f"policy: the tokenizer in {folder} has no chat template (`chat_template` in tokenizer_config.json, or "
            "chat_template.jinja): prompts are single user messages rendered through it"
        )
    config = load_config(folder)
    if trained:
        check_trainable(config, folder)
    if weights:
        check_weights(folder, config)
    if trained and weights and config.tie_word_embeddings:
        _check_tied(folder, tied_weights(config))


def check_entries(folder: Path) -> None:
    """Raise ConfigError for what a download left unfinished in `folder`: links to nothing, pointers of git-lfs; and for
    an adapter."""
    for path in sorted(folder.iterdir()):
        if not path.exists():
            raise ConfigError(
                f"policy: {path} is a link to {path.readlink()}, which is gone (a pruned cache?); download the model "
                "again, as files (hf download --local-dir)"
            )
        if path.is_file():
            with path.open("rb") as file:
                if file.read(40).startswith(b"version https://git-lfs.github.com/"):
                    raise ConfigError(f"policy: {path} is a pointer of git-lfs, not the file; run: git lfs pull")
    if (folder / ADAPTER_CONFIG).is_file():
        raise ConfigError(
            f"policy: {folder} holds a PEFT adapter ({ADAPTER_CONFIG}); merge it into its model "
            "(merge_and_unload) and save that; of a campaign, opid export writes it merged"
        )


def load_config(folder: Path) -> PreTrainedConfig:
    """The architecture that config.json names. Raises ConfigError for an unknown one; its custom code is never run."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever the architecture's own checks raise
        raise ConfigError(
            f"policy: {folder / 'config.json'} is of no architecture that transformers knows without custom code, or "
            f"has wrong values: {error}"
        ) from None


def check_trainable(config: PreTrainedConfig, folder: Path) -> None:
    """Raise ConfigError unless the learner can train models of `config`, tied or not."""
    if getattr(config, "quantization_config", None):
        raise ConfigError(
            f"policy: {folder} is quantised (config.json: quantization_config): its weights cannot be trained; use the "
            "model as it was before"
        )
    check_architecture(config, folder)


def weight_files(folder: str | Path) -> list[Path]:
    """The files that hold the weights of a policy folder: those that its index names, or model.safetensors.

    Raises ConfigError where one is missing or where it is not clear which ones count.
    """
    folder = Path(folder)
    present = {path.name for path in folder.glob("*.safetensors")}
    if not present and not (folder / INDEX).exists():
        raise ConfigError(f"policy: {folder} has no safetensors weights ({WEIGHTS}, or shards with {INDEX})")
    named = {WEIGHTS}
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ConfigError(f"policy: {folder / INDEX}: weight_map must name the file of each weight")
        named = {str(name) for name in weight_map.values()}
    if missing := sorted(named - present):
        raise ConfigError(f"policy: {folder}: {_some(missing)} missing, {len(named)} files hold the weights")
    # transformers would read it alone, vLLM what the index names; without an index vLLM reads all files
    if others := sorted((present - named) & {WEIGHTS} if (folder / INDEX).exists() else present - named):
        raise ConfigError(f"policy: {folder}: {_some(others)} beside {_some(sorted(named))}; keep one set of weights")
    return [folder / name for name in sorted(named)]


def check_weights(folder: Path, config: PreTrainedConfig) -> None:
    """Raise ConfigError unless the headers of the weights give every weight of `config`'s architecture, in its shape
    and as one of `NUMBER_TYPES`, and no other. Quantised weights are only looked for."""
    files = weight_files(folder)
    stored: dict[str, Tensor] = {}
    raw: dict[str, str] = {}
    for path in files:
        weights, types = _header(path)
        stored |= weights
        raw |= {name: f"{name} in {path} is {type_}" for name, type_ in types.items() if type_ not in NUMBER_TYPES}
    if getattr(config, "quantization_config", None):
        return
    require_fit(folder, config, *_compare(config, stored), stored)
    if raw and _uses(config, stored, raw):
        alone = (text for name, text in raw.items() if _uses(config, stored, [name]))
        weight = next(alone, min(raw.values()))  # of two copies of a tied weight neither is missed alone
        raise ConfigError(
            f"policy: {weight}, and config.json has no quantization_config that says what it stands for; weights must "
            f"be {', '.join(NUMBER_TYPES)}"
        )


def _check_tied(folder: Path, tied: Sequence[str]) -> None:
    """Raise ConfigError where the weights hold several values of the one parameter that has the `tied` names."""
    from safetensors import safe_open

    values: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as weights:
            values |= {name: weights.get_tensor(name) for name in weights.keys() if is_one_of(name, tied)}  # noqa: SIM118
    names = list(values)
    if any(not values[name].equal(values[names[0]]) for name in names[1:]):
        raise ConfigError(
            f"policy: {folder}: config.json ties the output layer to the embeddings (tie_word_embeddings), but the "
            f"weights hold different {' and '.join(sorted(names))}; set tie_word_embeddings to false there"
        )


def require_fit(
    folder: Path,
    config: PreTrainedConfig,
    missing: Iterable[str],
    unknown: Iterable[str],
    misshapen: Iterable[str],
    stored: Iterable[str] = (),
) -> None:
    """Raise ConfigError that names the weights which are `missing`, `unknown` to the architecture or `misshapen`."""
    faults = {"missing": set(missing), "unknown to it": set(unknown), "of another shape": set(misshapen)}
    lines = [f"{what}: {_some(sorted(names))}" for what, names in faults.items() if names]
    if not lines:
        return
    wrappers = [f"{prefix!r} ({by})" for prefix, by in WRAPPERS.items() if any(n.startswith(prefix) for n in stored)]
    hint = f". Names begin with {wrappers[0]}: save the model without its wrapper" if wrappers else ""
    raise ConfigError(
        f"policy: the weights in {folder} are not those of config.json's {config.model_type}: {'; '.join(lines)}{hint}"
    )


def _header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights of a safetensors file by name, without their values (on PyTorch's meta device), and their types."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            shapes = {name: weight.get_shape() for name, weight in slices.items()}
            types = {name: weight.get_dtype() for name, weight in slices.items()}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"policy: {path} is cut or damaged ({error}); copy it again") from None
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, types


def _uses(config: PreTrainedConfig, stored: dict[str, Tensor], names: Iterable[str]) -> bool:
    """Whether a model of `config` lacks numbers without the weights called `names`: it does not read the masks that old
    files hold, and an architecture's own tables of integers are no weights."""
    without = {name: weight for name, weight in stored.items() if name not in {*names}}
    missing, _, misshapen = _compare(config, without)
    of_numbers = {name for name, one in without_values(config).state_dict().items() if one.is_floating_point()}
    return bool(misshapen or missing & of_numbers)


def _compare(config: PreTrainedConfig, stored: dict[str, Tensor]) -> tuple[set[str], set[str], set[str]]:
    """Weights that are missing, unknown to the architecture, or of another shape: transformers' own loading, with its
    renamings and its rules of what may be missing, on weights without values."""
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    model = without_values(config)
    settings = LoadStateDictConfig(
        device_map={"": "meta"},
        dtype=torch.float32,
        weight_mapping=get_model_conversion_mapping(model),  # pyright: ignore[reportArgumentType]
        ignore_mismatched_sizes=True,
    )
    info, _ = convert_and_load_state_dict_in_model(model, stored, settings)
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(info)
    misshapen = {f"{name} {list(given)}, not {list(wanted)}" for name, given, wanted in info.mismatched_keys}
    return info.missing_keys - {name for name, *_ in info.mismatched_keys}, info.unexpected_keys, misshapen


def read_json(path: Path) -> dict[str, Any]:
    """The object in a policy's JSON file. Raises ConfigError where it cannot be read or holds none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"policy: {path} is missing; give a complete HF model folder") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy: {path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"policy: {path} must hold a JSON object, got {type(data).__name__}")
    return data


def _some(names: list[str]) -> str:
    """The first three of `names`, and how many more there are."""
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
