import pytest
import torch

from opid_core.errors import DataError
from opid_core.rollout.engines.own_head import with_own_head

TIED = ("model.embed_tokens.weight", "lm_head.weight")
NORM, SHARED = torch.tensor([1.0]), torch.tensor([2.0, 3.0])


@pytest.mark.parametrize("stored", [*TIED, "embed_tokens.weight"])
def test_whichever_is_stored_fills_both(stored):
    found = list(with_own_head([("model.norm.weight", NORM), (stored, SHARED)], TIED))
    assert found[:2] == [("model.norm.weight", NORM), (stored, SHARED)]
    (added,) = found[2:]
    assert added[0] == (TIED[0] if stored == TIED[1] else TIED[1])
    assert added[1] is SHARED


def test_what_is_whole_already_stays_as_it_is():
    both = [(TIED[1], SHARED), (TIED[0], SHARED)]
    assert list(with_own_head(both, TIED)) == both
    assert list(with_own_head([("model.norm.weight", NORM)], ())) == [("model.norm.weight", NORM)]


def test_a_push_without_the_tied_weight_is_refused():
    with pytest.raises(DataError, match="neither of the tied weights"):
        list(with_own_head([("model.norm.weight", NORM)], TIED))
