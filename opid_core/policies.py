"""Policies as HF folders: making a tiny one and its tokenizer, reading and writing them, and GGUF files."""

from __future__ import annotations

import copy
import importlib.util
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opid_core.architectures import names_of_tied
from opid_core.errors import ConfigError
from opid_core.policy_check import check_entries, check_trainable, check_weights, load_config, require_fit

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

BESIDE_WEIGHTS = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Endings of the files that travel with the weights from policy to policy, byte for byte: all but config.json and an
index of weights."""


def make_tiny_policy(
    *, vocab_size: int, hidden_size: int, layers: int, heads: int, max_positions: int, seed: int, tied: bool = False
) -> PreTrainedModel:
    """A randomly initialised Qwen2 causal language model in float32; `tied`: its output layer is its embeddings.

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
        tie_word_embeddings=tied,
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


def load_model(folder: str | Path, dtype: Any, **settings: Any) -> Any:
    """The causal language model in an HF folder, and what else transformers' `from_pretrained` returns with `settings`.

    `dtype` of torch. Custom code in the folder is never run, nor is anybody asked.
    """
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False, **settings)


def load_tokenizer(folder: str | Path, **settings: Any) -> Any:
    """The tokenizer of an HF folder; custom code in it is never run, nor is anybody asked. Raises ConfigError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **settings)
    except Exception as error:  # the Rust library raises bare Exception for a damaged file
        raise ConfigError(f"policy: the tokenizer in {folder} cannot be loaded: {error}") from None


def prepare_policy(source: str | Path, target: str | Path) -> None:
    """Write to `target` the HF folder, with safetensors, of a model from a GGUF file (dequantised to float32) or an HF
    folder in another format. Both compute the same function, and what is tied stays so.

    Raises ConfigError where `source` is neither, cannot be trained, or lacks weights, and where `target` exists.
    """
    import torch
    from transformers import AutoModelForCausalLM

    source, target = Path(source), Path(target)
    if target.exists():
        raise ConfigError(f"--out: {target} exists already; name a new folder")
    is_gguf = source.suffix == ".gguf"
    if not (source if is_gguf else source / "config.json").is_file():
        raise ConfigError(f"{source} is neither an HF model folder (config.json is missing) nor a GGUF file")
    if is_gguf and importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"{source}: reading a GGUF file needs a package: pip install gguf")
    folder, settings = (source.parent, {"gguf_file": source.name}) if is_gguf else (source, {})
    if not is_gguf:
        check_entries(source)
        check_trainable(stored_config := load_config(source), source)
        if any(source.glob("*.safetensors*")):
            check_weights(source, stored_config)
    loaded, report = load_model(folder, torch.float32 if is_gguf else "auto", output_loading_info=True, **settings)
    unknown = [] if is_gguf else report["unexpected_keys"]  # a GGUF file may hold tables of the architecture's own
    require_fit(source, loaded.config, report["missing_keys"], unknown, map(str, report["mismatched_keys"]))
    unfinished = target.with_name(target.name + ".unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    config: Any = copy.deepcopy(loaded.config)
    config.tie_word_embeddings = bool(names_of_tied(loaded))
    if is_gguf:
        load_tokenizer(folder, **settings).save_pretrained(unfinished)
        del config.quantization_config  # it says how the file was stored
    model = AutoModelForCausalLM.from_config(config, dtype=loaded.dtype)
    model.load_state_dict(loaded.state_dict())
    save_policy(model, unfinished, files_from=unfinished if is_gguf else source)
    unfinished.rename(target)


def save_policy(
    model: PreTrainedModel, folder: str | Path, *, files_from: str | Path, state_dict: dict[str, Any] | None = None
) -> None:
    """Write an HF folder: safetensors, config.json, and what lies beside the weights copied from another HF folder.

    `state_dict`: the full weights, where the model itself holds only a share of them.
    """
    folder, origin = Path(folder), Path(files_from)
    folder.mkdir(parents=True, exist_ok=True)
    # Else it would write a generation_config.json of its own making, or refuse to write the model's.
    model.can_generate = lambda: False  # pyright: ignore[reportAttributeAccessIssue]
    model.save_pretrained(folder, state_dict=state_dict)
    if origin.resolve() != folder.resolve():
        copy_beside_weights(origin, folder)


def copy_beside_weights(origin: str | Path, folder: str | Path) -> None:
    """Copy what lies beside the weights of the HF folder `origin`, but for config.json, into `folder`."""
    for path in sorted(Path(origin).iterdir()):
        is_ours = path.name == "config.json" or path.name.endswith(".index.json")
        if path.is_file() and path.suffix in BESIDE_WEIGHTS and not is_ours:
            shutil.copyfile(path, Path(folder) / path.name)
