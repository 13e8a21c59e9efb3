import pytest

from opid_core.policy_shape import shape_of
from tests.architectures import tiny_config, tiny_model


@pytest.mark.parametrize(
    ("model_type", "idle"),
    [
        ("qwen3_moe", 2 * 2 * 3 * 32 * 24),  # of 2 layers 2 of 4 experts: gate, up and down, width 32 to 24
        ("qwen2_moe", 2 * 2 * 3 * 32 * 24),  # beside a shared expert, which each token meets
        ("qwen3", 0),
    ],
)
def test_a_token_meets_its_own_experts_alone(model_type, idle):
    shape = shape_of(tiny_model(tiny_config(model_type)))
    assert (shape.idle_parameters, shape.active_parameters) == (idle, shape.parameters - idle)
