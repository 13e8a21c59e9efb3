"""The method that docs/methods.md shows, and how a config names one of a user's own."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from opid_core.config import build_config, load_config
from opid_core.errors import ConfigError
from opid_core.hashing import training_hash
from opid_core.learning.losses import LossInput
from tests.opid_core.learning.methods import self_imitation
from tests.opid_core.learning.methods.batches import BATCH
from tests.opid_core.learning.methods.self_imitation import SelfImitation

NAME = "tests.opid_core.learning.methods.self_imitation:SelfImitation"
FILE = Path(self_imitation.__file__)
REPOSITORY = Path(__file__).parents[4]
PAGE = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")


def block(text: str, language: str) -> str:
    return next(found for found in re.findall(rf"```{language}\n(.*?)```\n", PAGE, re.DOTALL) if text in found)


def configured(**keys) -> dict:
    return {"campaign": "c", "method": {"name": NAME, **keys}}


def test_the_page_shows_the_file():
    assert block("class SelfImitation", "python") == FILE.read_text(encoding="utf-8")


def test_the_config_of_the_page_names_the_method(user_modules, monkeypatch):
    shutil.copy(FILE, user_modules / "self_imitation.py")
    monkeypatch.chdir(REPOSITORY)
    config = user_modules / "imitation.yaml"
    config.write_text(block("self_imitation:", "yaml").replace("configs/", f"{REPOSITORY}/configs/"))
    method = load_config(config).method
    assert type(method).__module__ == "self_imitation"
    # The quickstart's `tied_groups` stays, its lambdas fall away.
    keys = {"baseline": "step", "normalize": "mean_std", "tied_groups": "zero", "gamma": 0.95}
    own = {"failure_weight": 0.25, "imitation_coefficient": 0.01}
    assert method.model_dump() == {"name": "self_imitation:SelfImitation", **keys, **own}


def test_its_advantages():
    method = SelfImitation(name=NAME, baseline="trajectory", normalize="mean", failure_weight=0.25)
    result = method.advantages(BATCH)
    assert result.outcome.tolist() == [5.0, 5.0, -1.25]
    assert result.outcome.dtype == np.float32
    assert not result.skill.any()


def test_its_loss_crosses_to_the_learners_processes():
    """Two of four tokens have positive advantages: log-probs -1 and -3, a mean over four tokens of 1."""
    log_probs = torch.tensor([[-1.0, -3.0], [-2.0, float("nan")], [-4.0, -5.0]], requires_grad=True)
    inputs = LossInput(
        log_probs=log_probs,
        old_log_probs=torch.zeros(3, 2),
        advantages=torch.tensor([[1.0, 2.0], [-1.0, 5.0], [0.0, -1.0]]),
        response_mask=torch.tensor([[True, True], [True, False], [False, True]]),
        aggregation="token-mean",
    )
    loss = pickle.loads(pickle.dumps(SelfImitation(name=NAME, imitation_coefficient=0.5).loss))
    value, numbers = loss(inputs)
    assert value.item() == pytest.approx(0.5)
    assert numbers["imitation_loss"].item() == pytest.approx(1.0)
    value.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[-0.125, -0.125], [0.0, 0.0], [0.0, 0.0]]


def test_its_config_is_stored_and_hashed():
    config = build_config(configured(failure_weight=0.25))
    assert isinstance(config.method, SelfImitation)
    assert build_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config
    assert training_hash(config) != training_hash(build_config(configured()))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": NAME, "failure_weight": 2}, r"method\.failure_weight: Input should be less than or equal to 1"),
        ({"name": NAME, "lambda_step": 1}, r"method\.lambda_step: the method .*SelfImitation .*keys: name, .*_weight"),
        ({"name": "no_such_module:Any"}, r"method\.name: cannot import module 'no_such_module': No module named"),
        ({"name": "wrong:Any"}, r"method\.name: cannot import module 'wrong': .*\(wrong.py, line 1\)"),
        ({"name": "empty:Any"}, r"method\.name: empty:Any is no class that extends .*Method"),
        ({"name": "empty:text"}, r"method\.name: empty:text is no class that extends .*Method"),
        ({"name": ".empty:Any"}, r"method\.name: '\.empty' is no name of a module"),
        ({"name": "SelfImitation"}, r"method\.name: unknown method 'SelfImitation'; known: .* or module:name"),
    ],
)
def test_a_name_that_leads_nowhere_and_keys_that_do_not_fit_are_refused(user_modules, method, message):
    (user_modules / "wrong.py").write_text("def :")
    (user_modules / "empty.py").write_text("text = 'no method'")
    with pytest.raises(ConfigError, match=message) as caught:
        build_config({"campaign": "c", "method": method})
    assert str(caught.value).startswith("config: ")
