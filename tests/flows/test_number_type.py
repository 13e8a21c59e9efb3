"""`dtype: auto`: what is measured, what follows from it, and that a campaign which has begun keeps what it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import T5Config

from flows import memory, number_type, plan
from flows.auto import choices, decided, with_choices
from flows.number_type import FASTER, TOLERANCE, fastest, measured_rates
from flows.study import load_study, with_decisions
from flows.train import check_and_open
from infra.store import find_campaign, open_campaign, read_config
from opid_core.config import CampaignConfig, build_config
from opid_core.errors import ConfigError, DataError, InfrastructureError
from tests.factories import make_tiny_policy_folder
from tests.flows.cli.test_cli import SMALL, opid, own_environment  # noqa: F401 - an autouse fixture
from tests.flows.studies import config_file

BOTH = {"learner": {"dtype": "auto"}, "engine": {"dtype": "auto"}}
IN_BFLOAT16 = {"learner": {"dtype": "bfloat16"}, "engine": {"dtype": "bfloat16", "canary_tolerance": 0.1}}
SLOW, FAST = {"float32": 100e9, "bfloat16": 4e9}, {"float32": 100e9, "bfloat16": 800e9}


def silent(text: str) -> None:
    raise AssertionError(text)


def config_of(tmp_path, **sections: Any) -> CampaignConfig:
    return build_config({**SMALL, "root": str(tmp_path / "runs"), **sections})


def dtypes(config: CampaignConfig) -> tuple[str, str, float]:
    return config.learner.dtype, config.engine.dtype, config.engine.canary_tolerance


@pytest.fixture
def measure(monkeypatch):
    """Makes these the rates that are measured, on a machine without a GPU; returns the sizes that are asked for."""
    asked: list[set[tuple[int, int]]] = []

    def make(rates: dict[str, float] | None) -> list[set[tuple[int, int]]]:
        def rates_of(sizes):
            assert rates is not None, "nothing is to be measured"
            asked.append(set(sizes))
            return rates

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(number_type, "measured_rates", rates_of)
        return asked

    return make


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"),
    [
        (100.0, 100.0 * FASTER, "bfloat16"),
        (100.0, 100.0 * FASTER - 0.01, "float32"),
        (100.0, 100.0, "float32"),
        (100.0, 4.0, "float32"),
        (100.0, 800.0, "bfloat16"),
    ],
)
def test_bfloat16_is_chosen_where_it_is_faster_by_the_factor(float32, bfloat16, chosen):
    assert FASTER == 1.5
    assert fastest({"float32": float32, "bfloat16": bfloat16}) == chosen


class Multiplier:
    """A thread that does so many FLOP/s by number type, and takes a second longer for its first product of a type and
    a number of rows, in place of torch's and the clock."""

    def __init__(self, rates: dict[torch.dtype, float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.rates, self.now_s = rates, 0.0
        self.products: set[tuple[int, int, int]] = set()
        self.begun: set[tuple[torch.dtype, int]] = set()
        monkeypatch.setattr(torch.nn.functional, "linear", self.linear)

    def linear(self, values: torch.Tensor, weights: torch.Tensor) -> None:
        assert values.dtype == weights.dtype
        assert torch.get_num_threads() == 1
        (rows, inputs), (outputs, also_inputs) = values.shape, weights.shape
        assert inputs == also_inputs
        self.products.add((rows, inputs, outputs))
        self.now_s += 2 * rows * inputs * outputs / self.rates[values.dtype]
        if (values.dtype, rows) not in self.begun:
            self.begun.add((values.dtype, rows))
            self.now_s += 1

    def clock(self) -> float:
        return self.now_s


@pytest.mark.parametrize(("float32", "bfloat16"), [(2.0**26, 2.0**28), (2.0**28, 2.0**26)])
def test_a_rate_is_the_flop_of_the_layers_over_the_seconds_of_the_fastest_pass(monkeypatch, float32, bfloat16):
    """A row takes 2 * (64 * 64 + 2 * 64 * 256) = 73,728 FLOP. At 2 ** 26 a second 16 rows are 18 ms, 32 are 35."""
    multiplier = Multiplier({torch.float32: float32, torch.bfloat16: bfloat16}, monkeypatch)
    rates = measured_rates([(64, 64), (64, 256), (256, 64), (64, 64)], multiplier.clock)
    assert rates == {"float32": float32, "bfloat16": bfloat16}
    sizes = [(64, 64), (64, 256), (256, 64)]
    assert multiplier.products == {(rows, *size) for rows in (16, 32) for size in sizes}


def test_of_a_large_layer_a_part_is_multiplied_and_rows_have_an_end(monkeypatch):
    multiplier = Multiplier({torch.float32: 2.0**60, torch.bfloat16: 2.0**60}, monkeypatch)
    multiplier.begun = {(dtype, 2**n) for dtype in multiplier.rates for n in range(20)}
    assert measured_rates([(4096, 2), (8, 2048)], multiplier.clock) == {"float32": 2.0**60, "bfloat16": 2.0**60}
    assert multiplier.products == {(2**n, *size) for n in range(4, 13) for size in ((1024, 2), (8, 1024))}


def test_rates_are_measured_and_leave_the_process_as_it_was():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert min(measured_rates([(64, 64)]).values()) > 1e6
    assert torch.get_num_threads() == threads
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize(
    ("sections", "rates", "expected"),
    [
        (BOTH, SLOW, ("float32", "float32", 0.001)),
        (BOTH, FAST, ("bfloat16", "bfloat16", 0.1)),
        ({"learner": {"dtype": "auto"}}, FAST, ("bfloat16", "float32", 0.1)),
        ({"engine": {"dtype": "auto"}}, FAST, ("float32", "bfloat16", 0.1)),
        ({"engine": {"dtype": "auto"}}, SLOW, ("float32", "float32", 0.001)),
        (
            {"learner": {"dtype": "auto"}, "engine": {"dtype": "bfloat16", "canary_tolerance": 0.06}},
            SLOW,
            ("float32", "bfloat16", 0.06),
        ),
        (
            {"learner": {"dtype": "auto"}, "engine": {"dtype": "auto", "canary_tolerance": 0.05}},
            FAST,
            ("bfloat16", "bfloat16", 0.05),
        ),
        (
            {"learner": {"dtype": "auto"}, "engine": {"dtype": "auto", "canary_tolerance": 0.049}},
            FAST,
            ("bfloat16", "bfloat16", 0.1),
        ),
        ({"learner": {"dtype": "auto"}, "engine": {"dtype": "bfloat16"}}, SLOW, ("float32", "bfloat16", 0.001)),
    ],
)
def test_one_measurement_decides_what_is_auto_and_the_tolerance_with_it(tmp_path, measure, sections, rates, expected):
    asked, told = measure(rates), []
    config = decided(config_of(tmp_path, **sections), told.append)
    assert dtypes(config) == expected
    assert TOLERANCE == 0.1
    assert asked == [{(64, 64), (64, 256), (256, 64)}]  # the layers of the policy of the warm start
    (text,) = told
    chosen = {name: getattr(config, name).dtype for name, values in sections.items() if values["dtype"] == "auto"}
    assert text.startswith("dtype auto: " + ", ".join(f"{name} {dtype}" for name, dtype in chosen.items()) + ": ")
    assert f"{rates['float32'] / 1e9:g} GFLOP/s in float32 and {rates['bfloat16'] / 1e9:g} in bfloat16" in text
    assert decided(config, silent) is config


def test_where_nothing_is_auto_nothing_is_measured_or_changed(tmp_path, measure):
    measure(None)
    config = config_of(tmp_path, learner={"dtype": "bfloat16"})
    assert decided(config, silent) is config


def test_the_layers_are_those_of_the_policy(tmp_path, measure):
    asked = measure(SLOW)
    policy = make_tiny_policy_folder(tmp_path / "policy")
    other = {"warm_start": {"hidden_size": 96, "heads": 3, "layers": 1}}
    layers = {(64, 64), (64, 256), (256, 64)}
    choices([config_of(tmp_path, **BOTH, policy=str(policy))], lambda text: None)
    choices([config_of(tmp_path, **BOTH, **other)], lambda text: None, folder=policy)
    choices([config_of(tmp_path, **BOTH, **other)], lambda text: None)
    assert asked == [layers, layers, {(96, 96), (96, 384), (384, 96)}]


def test_of_a_policy_that_cannot_be_trained_nothing_is_measured(tmp_path, measure):
    measure(None)
    config = config_of(tmp_path, **BOTH, policy=str(tmp_path / "policy"))
    with pytest.raises(ConfigError, match=r"^policy: there is no folder"):
        check_and_open(config, Console())
    policy = make_tiny_policy_folder(tmp_path / "policy")
    T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2).save_pretrained(policy)
    with pytest.raises(ConfigError, match=r"^policy: .*'t5' cannot be trained"):
        check_and_open(config, Console())
    with pytest.raises(ConfigError, match=r"^policy: .*config\.json: no t5 model"):
        decided(config, silent, folder=policy)
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def away_once(monkeypatch):
    """A model of the hub whose texts are not given at the first time; returns its name."""
    folder = Path(__file__).parents[2] / "configs" / "policies" / "alfworld_tiny"
    away = [InfrastructureError("policy: the hub is away")]

    def folder_of(policy: str, *, weights: bool = True) -> Path:
        assert policy == "org/own"
        if away:
            raise away.pop()
        return folder

    for module in (memory, number_type, plan):
        monkeypatch.setattr(module, "policy_folder", folder_of)
    return "org/own"


@pytest.mark.parametrize("auto", [BOTH, {"learner": {"dtype": "auto"}}, {"engine": {"dtype": "auto"}}])
def test_a_hub_that_was_away_is_asked_again_before_anything_is_stored(tmp_path, measure, away_once, auto):
    measure(SLOW)
    config = config_of(tmp_path, **auto, policy=away_once, recovery={"retry_delay_s": 0})
    console = Console(record=True, width=300)
    begun = check_and_open(config, console)
    assert dtypes(begun) == ("float32", "float32", 0.001)
    assert read_config(find_campaign(config.root, config.campaign)) == begun.model_dump(mode="json")
    assert "policy: the hub is away; trying again" in console.export_text()


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_plan_has_all_but_estimates_while_the_hub_is_away(tmp_path, measure, monkeypatch, capsys, command):
    def away(policy: str, *, weights: bool = True) -> Path:
        raise InfrastructureError("policy: the hub is away")

    measure(None)
    for module in (memory, number_type, plan):
        monkeypatch.setattr(module, "policy_folder", away)
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps({**SMALL, "root": str(tmp_path / "runs"), **BOTH, "policy": "org/own"}))
    assert opid(monkeypatch, command, path, "--dry-run") == 2
    printed = capsys.readouterr()
    assert printed.err == "error: policy: the hub is away\n"
    assert "Dry run: nothing was written." in printed.out
    assert not (tmp_path / "runs").exists()


def test_a_study_is_not_begun_with_what_is_not_decided(tmp_path, measure, away_once):
    measure(SLOW)
    path = config_file(tmp_path, "grpo", "{name: grpo}")
    text = path.read_text().replace("policy: somewhere\n", f"policy: {away_once}\n")
    path.write_text(text + "learner: {dtype: auto}\nengine: {dtype: auto}\n")
    study = load_study("mine", [path], 2)
    with pytest.raises(InfrastructureError):
        with_decisions(study, silent)
    assert {dtypes(c) for _, _, c in with_decisions(study, lambda text: None).campaigns()} == {
        ("float32", "float32", 0.001)
    }


@pytest.mark.parametrize(("supported", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_is_asked_and_not_measured(tmp_path, measure, monkeypatch, supported, chosen):
    measure(None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **named: asked.append(named) or supported)
    told: list[str] = []
    assert dtypes(decided(config_of(tmp_path, **BOTH), told.append))[:2] == (chosen, chosen)
    assert asked == [{"including_emulation": False}]
    assert "GPU" in told[0]


def test_of_a_card_that_a_dry_run_names_nothing_is_measured(tmp_path, measure, monkeypatch):
    measure(None)
    config = config_of(tmp_path, **BOTH)
    assert dtypes(decided(config, lambda text: None, card="h100")) == ("bfloat16", "bfloat16", 0.1)
    measure(SLOW)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert dtypes(decided(config, lambda text: None, card="cpu")) == ("float32", "float32", 0.001)


@pytest.mark.parametrize("before", [SLOW, FAST])
def test_a_campaign_that_has_begun_keeps_its_types_on_any_machine(tmp_path, measure, before):
    console = Console(record=True, width=300)
    measure(before)
    config = config_of(tmp_path, **BOTH)
    begun = check_and_open(config, console)
    assert read_config(find_campaign(config.root, config.campaign)) == begun.model_dump(mode="json")
    chosen = fastest(before)
    assert f"learner {chosen}, engine {chosen}: a CPU thread" in console.export_text()

    measure(None)
    longer = config.model_copy(update={"iterations": 9})
    again = check_and_open(longer, console)
    assert again == begun.model_copy(update={"iterations": 9})
    assert f"learner {chosen}, engine {chosen}, as campaign small began" in console.export_text()


def test_a_named_type_is_taken_over_by_auto_and_another_named_one_is_refused(tmp_path, measure):
    measure(None)
    named = config_of(tmp_path, learner={"dtype": "bfloat16"}, engine={"dtype": "float16", "canary_tolerance": 0.2})
    open_campaign(named.root, named.campaign, named.model_dump(mode="json"))
    auto = {"learner": {"dtype": "auto"}, "engine": {"dtype": "auto", "canary_tolerance": 0.2}}
    assert decided(config_of(tmp_path, **auto), lambda text: None) == named
    auto["learner"]["dtype"] = "float32"
    with pytest.raises(ConfigError, match=r'learner\.dtype: stored "bfloat16", given "float32"'):
        check_and_open(config_of(tmp_path, **auto), Console())


@pytest.mark.parametrize(
    ("given", "tolerance"),
    [(0.03, 0.03), (0.001, 0.03), (0.06, 0.06)],
)
def test_a_tolerance_that_auto_did_not_choose_is_not_widened(tmp_path, measure, given, tolerance):
    """Begun with named types and 0.03: the same 0.03 goes on, as does the default; 0.06 is wide enough, and refused."""
    measure(None)
    named = config_of(tmp_path, learner={"dtype": "bfloat16"}, engine={"dtype": "bfloat16", "canary_tolerance": 0.03})
    open_campaign(named.root, named.campaign, named.model_dump(mode="json"))
    again = {"learner": {"dtype": "auto"}, "engine": {"dtype": "auto", "canary_tolerance": given}}
    assert dtypes(decided(config_of(tmp_path, **again), lambda text: None)) == ("bfloat16", "bfloat16", tolerance)


@pytest.mark.parametrize("stored", [None, "0.1", True, 0, -1])
def test_a_stored_tolerance_must_be_one(tmp_path, measure, stored):
    measure(None)
    config = config_of(tmp_path, **BOTH)
    values = with_choices(config, IN_BFLOAT16).model_dump(mode="json")
    values["engine"]["canary_tolerance"] = stored
    open_campaign(config.root, config.campaign, values)
    with pytest.raises(
        DataError, match=rf"config\.json: engine\.canary_tolerance: expected a number > 0, got {stored!r}"
    ):
        decided(config, silent)


@pytest.mark.parametrize("stored", [None, "auto", "float64", 16])
def test_a_stored_config_must_say_which_type_it_is(tmp_path, measure, stored):
    measure(None)
    config = config_of(tmp_path, **BOTH)
    values = json.loads(config.model_dump_json())
    values["learner"] = {"dtype": stored} if stored else {}
    open_campaign(config.root, config.campaign, values)
    with pytest.raises(DataError, match=rf"config\.json: learner\.dtype: expected float32, bfloat16, got {stored!r}"):
        decided(config, silent)


@pytest.mark.parametrize(
    ("sections", "named"),
    [(BOTH, r"learner\.dtype and engine\.dtype are"), ({"engine": {"dtype": "auto"}}, r"engine\.dtype is")],
)
def test_on_a_cluster_the_type_is_named(tmp_path, measure, sections, named):
    measure(None)
    config = config_of(tmp_path, **sections, cluster={"address": "10.0.0.1:6379"})
    with pytest.raises(ConfigError, match=rf"cluster\.address; name what {named} there$"):
        decided(config, silent)
    begun = with_choices(config, {name: IN_BFLOAT16[name] for name in ("engine", *sections)})
    open_campaign(begun.root, begun.campaign, begun.model_dump(mode="json"))
    assert decided(config, lambda text: None) == begun  # decided elsewhere, and moved to the cluster


def test_all_campaigns_of_a_study_compute_alike(tmp_path, measure):
    policy = make_tiny_policy_folder(tmp_path / "policy")
    more = f"learner: {{dtype: auto}}\nengine: {{dtype: auto}}\npolicy: {policy}\n"
    files = [config_file(tmp_path, name, f"{{name: {name}}}") for name in ("grpo", "rloo")]
    for path in files:
        path.write_text(path.read_text().replace("policy: somewhere\n", "") + more)
    study = load_study("mine", files, 2)
    asked = measure(SLOW)
    assert {dtypes(c) for _, _, c in with_decisions(study, lambda text: None).campaigns()} == {
        ("float32", "float32", 0.001)
    }
    assert len(asked) == 1

    measure(None)
    config = with_choices(study.campaigns()[-1][2], IN_BFLOAT16)
    open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    assert {dtypes(c) for _, _, c in with_decisions(study, lambda text: None).campaigns()} == {
        ("bfloat16", "bfloat16", 0.1)
    }


def test_a_dry_run_says_what_auto_is_on_this_machine(monkeypatch, capsys, tmp_path, measure):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps({**SMALL, "root": str(tmp_path / "runs"), **BOTH}))
    assert opid(monkeypatch, "train", path, "--dry-run") == 0
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if line.startswith("dtype auto: ")]
    chosen = line.split()[3].rstrip(",")
    assert line.startswith(
        f"dtype auto: learner {chosen}, engine {chosen}: a CPU thread multiplies the policy's layers"
    )
    assert shown.count(f"dtype: {chosen}\n") == 2
    assert "dtype: auto" not in shown
    assert not (tmp_path / "runs").exists()

    measure(FAST)
    assert opid(monkeypatch, "compare", path, "--seeds", "1", "--dry-run") == 0
    assert "dtype auto: learner bfloat16, engine bfloat16: a CPU thread" in capsys.readouterr().out
