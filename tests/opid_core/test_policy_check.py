"""What users bring as a policy folder: each fault is told before any work, by file and weight."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from opid_core.errors import ConfigError
from opid_core.learning.scoring import score
from opid_core.policies import load_model, load_tokenizer, prepare_policy, save_policy
from opid_core.policy_check import INDEX, WEIGHTS, check_policy_folder, load_config, weight_files
from opid_core.rollout.engines.vllm import end_tokens
from opid_core.samples import Ragged
from tests.architectures import tiny_config, tiny_model
from tests.factories import EOS_ID, make_tiny_policy_folder, make_tokenizer

HEAD, NORM = "lm_head.weight", "model.layers.1.input_layernorm.weight"


@pytest.fixture
def policy_folder(tmp_path):
    return make_tiny_policy_folder(tmp_path / "policy")


def test_a_complete_policy_folder_passes(policy_folder):
    check_policy_folder(policy_folder)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer_config.json", "tokenizer_config.json is missing"),
        ("tokenizer.json", "no tokenizer"),
        ("chat_template.jinja", "no chat template"),
        ("model.safetensors", "no safetensors weights"),
    ],
)
def test_an_incomplete_policy_folder_is_refused_by_name(policy_folder, removed, message):
    (policy_folder / removed).unlink()
    with pytest.raises(ConfigError, match=message):
        check_policy_folder(policy_folder)


def test_a_missing_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"no folder nothing, seen from {tmp_path}; .*ORG/NAME.*null"):
        check_policy_folder("nothing")
    with pytest.raises(ConfigError, match=rf"no folder {tmp_path}/nothing; .*ORG/NAME\)$"):
        check_policy_folder(tmp_path / "nothing", trained=False)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is not a folder"):
        check_policy_folder("file")


def edit_weights(folder: Path, edit) -> None:
    save_file(edit(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shard(folder: Path) -> list[Path]:
    """The folder's weights in several files with an index."""
    model = load_model(folder, "auto")
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    return weight_files(folder)


def without(name: str):
    return lambda weights: {key: value for key, value in weights.items() if key != name}


def prefixed(prefix: str):
    return lambda weights: {prefix + key: value for key, value in weights.items()}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without(HEAD), f"qwen2: missing: {HEAD}$"),
        (without(NORM), f"qwen2: missing: {NORM}$"),
        (lambda weights: {**weights, "v_head.weight": torch.zeros(1)}, "unknown to it: v_head.weight$"),
        (lambda weights: {**weights, NORM: torch.ones(32)}, rf"of another shape: {NORM} \[32\], not \[64\]$"),
        (prefixed("_orig_mod."), r"missing: .* and 24 more; .*'_orig_mod.' \(torch.compile\)"),
        (prefixed("module."), "'module.'"),
        (prefixed("base_model.model."), "'base_model.model.' .PEFT"),
    ],
)
@pytest.mark.parametrize("trained", [True, False])
def test_weights_that_are_not_those_of_the_architecture_are_named(policy_folder, edit, message, trained):
    edit_weights(policy_folder, edit)
    with pytest.raises(ConfigError, match=f"weights in {policy_folder} .*{message}"):
        check_policy_folder(policy_folder, trained)


def test_values_that_no_model_has_are_told(policy_folder):
    edit_config(policy_folder, hidden_act="nope")
    with pytest.raises(ConfigError, match=rf"{policy_folder}/config\.json: no qwen2 model has these values: .*nope"):
        check_policy_folder(policy_folder)


def test_end_tokens_are_those_declared_and_the_tokenizer_s(policy_folder):
    (policy_folder / "generation_config.json").write_text('{"eos_token_id": [3, 2]}')
    assert end_tokens(policy_folder) == [EOS_ID, 2, 3]
    (policy_folder / "generation_config.json").write_text("{}")
    assert end_tokens(policy_folder) == [EOS_ID]


@pytest.mark.parametrize("declared", ["abc", [[1]], 1.5, True, -1, 9999, [1, "2"]])
def test_an_end_token_that_is_none_of_the_policy_s_is_refused(policy_folder, declared):
    (policy_folder / "generation_config.json").write_text(json.dumps({"eos_token_id": declared}))
    with pytest.raises(
        ConfigError, match=r"generation_config\.json: eos_token_id must be .* integer from 0 to \d+, got"
    ):
        end_tokens(policy_folder)


def test_more_layers_in_the_config_than_in_the_weights(policy_folder):
    edit_config(policy_folder, num_hidden_layers=3, layer_types=None)
    with pytest.raises(ConfigError, match=r"missing: model\.layers\.2\..* and 9 more$"):
        check_policy_folder(policy_folder)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral", "gpt_oss", "gpt_neox"])
def test_weights_are_compared_as_transformers_loads_them(model_type, tmp_path):
    """Experts lie one by one in the file and together in the model."""
    tiny_model(tiny_config(model_type)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    check_policy_folder(tmp_path)
    edit_weights(tmp_path, lambda weights: dict(list(weights.items())[:-1]))
    with pytest.raises(ConfigError, match=f"config.json's {model_type}: missing: "):
        check_policy_folder(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_plain_numbers_are_named(policy_folder, dtype):
    """NORM does not come first among them: the one named is one that the model computes with."""
    unread = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8, dtype=torch.int8)}
    edit_weights(policy_folder, lambda weights: {**weights, **unread})
    check_policy_folder(policy_folder)
    edit_weights(policy_folder, lambda weights: {**weights, NORM: weights[NORM].to(dtype)})
    message = rf"policy: {NORM} in {policy_folder / WEIGHTS} is (I8|BOOL|F8_E4M3), .*must be F64, F32, F16, BF16$"
    with pytest.raises(ConfigError, match=message):
        check_policy_folder(policy_folder)


def test_an_architecture_s_own_table_of_integers_passes(tmp_path):
    tiny_model(tiny_config("deepseek_v4")).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert any(not one.is_floating_point() for one in load_file(tmp_path / WEIGHTS).values())
    check_policy_folder(tmp_path)


def test_unfinished_downloads_are_named(policy_folder):
    weights = policy_folder / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(ConfigError, match=f"{weights} is cut or damaged"):
        check_policy_folder(policy_folder)
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ConfigError, match=f"{weights} is a pointer of git-lfs.* git lfs pull"):
        check_policy_folder(policy_folder)
    weights.unlink()
    weights.symlink_to("../../blobs/0123")
    with pytest.raises(ConfigError, match=rf"{weights} is a link to \.\./\.\./blobs/0123, which is gone"):
        check_policy_folder(policy_folder)


def test_the_index_says_which_files_count(policy_folder):
    files = shard(policy_folder)
    assert len(files) > 2
    save_file({"tok_embeddings.weight": torch.zeros(1)}, policy_folder / "consolidated.safetensors")
    check_policy_folder(policy_folder)
    assert weight_files(policy_folder) == files
    files[1].unlink()
    with pytest.raises(ConfigError, match=f"{files[1].name} missing, {len(files)} files hold the weights"):
        check_policy_folder(policy_folder)


def test_weights_beside_weights_without_an_index_are_refused(policy_folder):
    save_file({"tok_embeddings.weight": torch.zeros(1)}, policy_folder / "consolidated.safetensors")
    with pytest.raises(ConfigError, match=r"consolidated.safetensors beside model.safetensors; keep one set"):
        check_policy_folder(policy_folder)


def test_both_a_single_file_and_an_index_are_refused(policy_folder):
    whole = (policy_folder / WEIGHTS).read_bytes()
    shard(policy_folder)
    (policy_folder / WEIGHTS).write_bytes(whole)
    with pytest.raises(ConfigError, match=r"model.safetensors beside model-00001.* keep one set"):
        check_policy_folder(policy_folder)
    (policy_folder / INDEX).write_text("[]")
    with pytest.raises(ConfigError, match=f"{INDEX} must hold a JSON object"):
        check_policy_folder(policy_folder)


def test_a_quantised_policy_is_played_only(policy_folder):
    edit_config(policy_folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ConfigError, match="is quantised"):
        check_policy_folder(policy_folder)
    check_policy_folder(policy_folder, trained=False)


def test_an_adapter_is_refused(policy_folder):
    (policy_folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a PEFT adapter"):
        check_policy_folder(policy_folder)


def test_custom_code_is_neither_run_nor_asked_about(policy_folder, tmp_path, monkeypatch):
    def asked(*_):
        raise AssertionError("nobody is asked")

    monkeypatch.setattr("builtins.input", asked)
    marker = tmp_path / "ran"
    (policy_folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass C: pass\n")
    auto_map = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.C", "AutoTokenizer": ["own.C", None]}
    edit_config(policy_folder, auto_map=auto_map)
    check_policy_folder(policy_folder)  # of an architecture that transformers has
    load_model(policy_folder, "auto")
    load_tokenizer(policy_folder)
    edit_config(policy_folder, model_type="own")
    for check in (check_policy_folder, lambda folder: prepare_policy(folder, tmp_path / "prepared")):
        with pytest.raises(ConfigError, match=r"config.json is of no architecture .* without custom code"):
            check(policy_folder)
    assert not marker.exists()
    assert not (tmp_path / "prepared").exists()


def test_prepare_refuses_a_model_with_missing_weights(policy_folder, tmp_path):
    edit_weights(policy_folder, without(HEAD))
    with pytest.raises(ConfigError, match=f"missing: {HEAD}"):
        prepare_policy(policy_folder, tmp_path / "prepared")
    (policy_folder / WEIGHTS).unlink()  # nothing but PyTorch's own format
    torch.save(without(HEAD)(tiny_model(tiny_config("qwen2")).state_dict()), policy_folder / "pytorch_model.bin")
    tiny_config("qwen2").save_pretrained(policy_folder)
    with pytest.raises(ConfigError, match=f"missing: {HEAD}"):
        prepare_policy(policy_folder, tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()


def test_files_beside_the_weights_travel_unchanged(policy_folder, tmp_path):
    """Among them a generation_config.json that transformers refuses to save."""
    shard(policy_folder)
    beside = {"generation_config.json": b'{"do_sample": false, "temperature": 0.6}\n', "notes.txt": b"as they are\r\n"}
    for name, content in beside.items():
        (policy_folder / name).write_bytes(content)
    (policy_folder / "training_args.bin").write_bytes(b"left behind")
    beside["tokenizer.json"] = (policy_folder / "tokenizer.json").read_bytes()
    save_policy(load_model(policy_folder, "auto"), tmp_path / "next", files_from=policy_folder)
    assert {name: (tmp_path / "next" / name).read_bytes() for name in beside} == beside
    assert weight_files(tmp_path / "next") == [tmp_path / "next" / WEIGHTS]
    assert not (tmp_path / "next" / "training_args.bin").exists()
    check_policy_folder(tmp_path / "next")
    (policy_folder / "generation_config.json").unlink()
    save_policy(load_model(policy_folder, "auto"), tmp_path / "without", files_from=policy_folder)
    assert not (tmp_path / "without" / "generation_config.json").exists()


def test_a_tied_policy_is_taken_as_it_is_and_stays_so(tmp_path):
    tied = make_tiny_policy_folder(tmp_path / "tied", tied=True)
    check_policy_folder(tied)
    prepare_policy(tied, tmp_path / "prepared")
    save_policy(load_model(tied, "auto"), tmp_path / "saved", files_from=tied)
    sequences = Ragged.from_rows([[5, 6, 7], [8]], np.int32), Ragged.from_rows([[9, 10], [11]], np.int32)
    expected = score(load_model(tied, "auto"), *sequences, micro_batch_tokens=64)
    for folder in (tmp_path / "prepared", tmp_path / "saved"):
        check_policy_folder(folder)
        assert load_config(folder).tie_word_embeddings
        stored = load_file(folder / WEIGHTS)
        assert "model.embed_tokens.weight" in stored
        assert "lm_head.weight" not in stored
        found = score(load_model(folder, "auto"), *sequences, micro_batch_tokens=64)
        np.testing.assert_array_equal(found.values, expected.values)
    with pytest.raises(ConfigError, match="exists already"):
        prepare_policy(tied, tmp_path / "prepared")


def test_one_tied_parameter_has_one_value(policy_folder):
    described = json.loads((policy_folder / "config.json").read_text(encoding="utf-8"))
    (policy_folder / "config.json").write_text(json.dumps({**described, "tie_word_embeddings": True}))
    with pytest.raises(ConfigError, match=r"different lm_head\.weight and model\.embed_tokens\.weight; set tie_"):
        check_policy_folder(policy_folder)
    check_policy_folder(policy_folder, trained=False)  # vLLM and transformers take both as they are
    weights = load_file(policy_folder / WEIGHTS)
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}, policy_folder / WEIGHTS)
    check_policy_folder(policy_folder)  # a copy of the one value says nothing else
