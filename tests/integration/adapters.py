"""What a campaign that trains adapters stores and exports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flows.cli.export import export, write_export
from infra.manifest import kind_of
from opid_core.errors import ConfigError
from opid_core.policies import load_model
from opid_core.policy_check import check_policy_folder
from tests.factories import all_files
from tests.integration.campaigns import Campaign

LORA = ("learner.lora={rank: 4, alpha: 8}", "learner.learning_rate=1.0e-2", "learner.dtype=float32")
"""Overrides of a campaign whose policy has one layer, width 64 and inner width 256."""


def check_adapters(campaign: Campaign, folder: Path) -> None:
    """Policy 0 is whole, each later one an adapter; the exports, written below `folder`, are one policy. That engine
    and learner had the same weights after the push of merged ones the campaign's own canary says."""
    base, *adapters = (one.policy for one in campaign.chain)
    assert "model.safetensors" in map(base.name_of, base.files)
    for version, policy in enumerate(adapters, start=1):
        sizes = {policy.name_of(file): file.size for file in policy.files}
        of = [name for name in sizes if kind_of(name) == "weights"]
        assert of == ["adapter_model.safetensors"]
        tensors = load_file(campaign.policy(version) / of[0])
        trained = sum(one.numel() for one in tensors.values())
        assert trained == 4 * (4 * (64 + 64) + 3 * (64 + 256))
        assert sizes[of[0]] < 4 * trained + 4096  # float32, and a header
        state = sum(size for name, size in sizes.items() if kind_of(name) == "state")
        assert state < 4 * 4 * trained + 64 * 1024  # the adapters twice, two moments, and DeepSpeed's scripts
    assert campaign.table("scores", len(adapters)).column("reference_log_probs").null_count == 0

    write_export(campaign.store, campaign.chain, folder / "merged")
    write_export(campaign.store, campaign.chain, folder / "alone", adapter=True)
    assert "library_name: peft" in (folder / "alone" / "policy" / "README.md").read_text()
    check_policy_folder(folder / "merged" / "policy")
    assert "adapter_config.json" not in all_files(folder / "merged" / "policy")
    settings = json.loads((folder / "alone" / "policy" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)
    with pytest.raises(ConfigError, match="--adapter: the policy after iteration 0 is none"):
        export(
            "tiny",
            folder / "none",
            iteration="0",
            adapter=True,
            root=str(campaign.store.root),
            endpoint_url=campaign.store.endpoint_url,
        )
    start_folder, merged = (load_model(one, torch.float32) for one in (campaign.policy(0), folder / "merged/policy"))
    own = load_file(folder / "alone" / "policy" / "adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    a, b = (own[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
    expected = start_folder.get_submodule(name).weight + 2 * b @ a
    torch.testing.assert_close(merged.get_submodule(name).weight, expected, rtol=0, atol=1e-6)
