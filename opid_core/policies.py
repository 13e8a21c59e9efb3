"""Policies as HF folders: making a tiny one and its tokenizer, and checking one before any work is done with it."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opid_core.config import WarmStartConfig
from opid_core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)
"""Widths of one attention head that both the CPU and the GPU kernels of vLLM take."""

TINY_VOCABULARY = 1024
"""Entries of a tiny policy's vocabulary before the fixed phrases."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
END, PAD = "<|end|>", "<|pad|>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
LARGEST_NUMBER = 30
"""Numbers up to here (with the space before them) are one token each: entities are numbered."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
"""What travels with the weights from policy to policy, unchanged."""


def make_tiny_policy(
    *, vocab_size: int, hidden_size: int, layers: int, heads: int, max_positions: int, seed: int
) -> PreTrainedModel:
    """A randomly initialised Qwen2 causal language model in float32 with untied embeddings.

    `max_positions`: longest prompt + response in tokens. The same seed gives the same weights; the global random
    state stays as it was. Raises ConfigError where no vLLM kernel takes hidden_size / heads.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    head_size, rest = divmod(hidden_size, heads)
    if rest or head_size not in HEAD_SIZES:
        raise ConfigError(
            f"warm_start: hidden_size / heads = {hidden_size} / {heads} must be one of "
            f"{', '.join(map(str, HEAD_SIZES))} (widths of an attention head that the engine takes)"
        )
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=False,
        use_cache=False,
    )
    config.architectures = ["Qwen2ForCausalLM"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config).float()


def train_tokenizer(texts: Iterable[str], phrases: Sequence[str], vocab_size: int, folder: Path) -> None:
    """Train a byte-level BPE on `texts` and save it under `folder` for `transformers.AutoTokenizer`.

    `phrases` (the fixed wording of prompts) become one token each, so that a tiny policy's context holds facts instead
    of boilerplate. Any text can still be encoded: the alphabet is all bytes.
    """
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    # AutoTokenizer reads every tokenizer next to a Qwen2 model as this class, with this class's splitting of words.
    untrained = Qwen2Tokenizer(eos_token=END, pad_token=PAD, unk_token=END)
    tokenizer = untrained.train_new_from_iterator(
        texts, vocab_size, new_special_tokens=list(_ROLES), show_progress=False
    )
    whole = [*phrases, *(f" {number}" for number in range(1, LARGEST_NUMBER + 1))]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in whole])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def check_policy_folder(folder: str | Path, trained: bool = True) -> None:
    """Raise ConfigError that names what is wrong with a base policy folder; read its small files only.

    A policy that is only played (not `trained`) may share its output layer with its embeddings.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"policy: {folder} is not a folder; give a local HF model folder, or null for a warm start")
    config = _read_json(folder / "config.json")
    tokenizer_config = _read_json(folder / "tokenizer_config.json")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ConfigError(f"policy: {folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json)")
    if not tokenizer_config.get("chat_template") and not (folder / "chat_template.jinja").is_file():
        raise ConfigError(
            f"policy: the tokenizer in {folder} has no chat template (`chat_template` in tokenizer_config.json, or "
            "chat_template.jinja): prompts are single user messages rendered through it"
        )
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(f"policy: {folder} has no safetensors weights (*.safetensors)")
    if trained and config.get("tie_word_embeddings", _tied_by_default(config)):
        raise ConfigError(
            f"policy: {folder} ties its output layer to its embeddings (config.json: tie_word_embeddings). A live "
            "engine that gets new weights would keep the old output layer without a word. Make an untied copy first: "
            f"opid prepare {folder} --out {folder}-untied"
        )


def prepare_policy(source: str | Path, target: str | Path) -> None:
    """Write to `target` the HF folder of a model from an HF folder or a GGUF file (dequantised to float32), with an
    output layer that is a parameter of its own. Both compute the same function.

    Raises ConfigError where `source` is neither, or `target` exists.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, target = Path(source), Path(target)
    if target.exists():
        raise ConfigError(f"--out: {target} exists already; name a new folder")
    is_gguf = source.suffix == ".gguf"
    if not (source if is_gguf else source / "config.json").is_file():
        raise ConfigError(f"{source} is neither an HF model folder (config.json is missing) nor a GGUF file")
    if is_gguf and importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"{source}: reading a GGUF file needs a package: pip install gguf")
    unfinished = target.with_name(target.name + ".unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    if is_gguf:
        loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(unfinished)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    config: Any = copy.deepcopy(loaded.config)
    config.tie_word_embeddings = False
    if is_gguf:
        del config.quantization_config  # it says how the file was stored
    model = AutoModelForCausalLM.from_config(config, dtype=loaded.dtype)
    model.load_state_dict(loaded.state_dict())  # the tied output layer is in it under a name of its own
    save_policy(model, unfinished, tokenizer_from=unfinished if is_gguf else source)
    unfinished.rename(target)


def save_policy(
    model: PreTrainedModel, folder: str | Path, *, tokenizer_from: str | Path, state_dict: dict[str, Any] | None = None
) -> None:
    """Write an HF folder: safetensors, config.json, and the tokenizer's files copied from another HF folder.

    `state_dict`: the full weights, where the model itself holds only a share of them.
    """
    folder, origin = Path(folder), Path(tokenizer_from)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, state_dict=state_dict)
    for name in TOKENIZER_FILES:
        if (origin / name).is_file() and origin.resolve() != folder.resolve():
            shutil.copyfile(origin / name, folder / name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"policy: {path} is missing; give a complete HF model folder") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy: {path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"policy: {path} must hold a JSON object, got {type(data).__name__}")
    return data


def _tied_by_default(config: dict[str, Any]) -> bool:
    """Whether the architecture ties its embeddings where config.json does not say."""
    from transformers import CONFIG_MAPPING

    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise ConfigError(f"policy: config.json names an unknown model_type {model_type!r}")
    return bool(CONFIG_MAPPING[model_type]().tie_word_embeddings)


@dataclass(frozen=True)
class PolicyShape:
    """What a policy's size follows from."""

    parameters: int
    layers: int
    hidden_size: int
    vocab_size: int
    key_value_size: int
    """Width of a layer's keys (and of its values), all heads together."""


def count_parameters(folder: Path | None, warm_start: WarmStartConfig) -> PolicyShape:
    """The shape of the policy in `folder`, or (None) of the one that a warm start would make. Allocates no weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if folder is None:
        with torch.device("meta"):
            model = make_tiny_policy(
                vocab_size=TINY_VOCABULARY,
                hidden_size=warm_start.hidden_size,
                layers=warm_start.layers,
                heads=warm_start.heads,
                max_positions=1,
                seed=0,
            )
    else:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    config = model.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return PolicyShape(
        parameters=model.num_parameters(),
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        key_value_size=head_size * config.num_key_value_heads,
    )
