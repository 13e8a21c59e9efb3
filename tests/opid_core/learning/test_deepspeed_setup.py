import subprocess
import sys

SUM_OF_MANY_TERMS = """
import torch
from opid_core.learning.deepspeed_setup import prepare_process

prepare_process(2)
generator = torch.Generator().manual_seed(0)
rows = torch.randn(64, 4096, generator=generator, requires_grad=True)
named_eight_times = torch.randint(0, 64, (512,), generator=generator)
weights = torch.randn(512, 4096, generator=generator)
gradients = set()
for _ in range(30):
    rows.grad = None
    (rows[named_eight_times] * weights).sum().backward()
    gradients.add(rows.grad.numpy().tobytes())
print(torch.get_num_threads(), len(gradients))
"""


def test_two_threads_add_up_a_gradient_in_the_same_order_each_time() -> None:
    done = subprocess.run([sys.executable, "-c", SUM_OF_MANY_TERMS], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["2", "1"]
