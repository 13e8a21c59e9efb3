"""What one step of the optimizer takes for a moment, in bytes a parameter: `flows.memory.STEP_BYTES`.

    python -m benchmarks.optimizer_step

The peak of this process during DeepSpeed's step beyond what it held before, with AdamW's `foreach` kernels, which CUDA
takes by default and a CPU where it is asked to. The first step, which also makes the moments, is not shown.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.stand_ins import memory
from flows.memory import STEP_BYTES
from opid_core.config import LearnerConfig
from opid_core.learning.deepspeed_setup import engine_config, prepare_process

WIDTH, LAYERS = 2000, 10


def measure(stage: int, dtype: torch.dtype, steps: int = 3) -> list[float]:
    """Bytes a parameter in each step but the first."""
    deepspeed = prepare_process(1)
    layers = [torch.nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype) for _ in range(LAYERS)]
    model = torch.nn.Sequential(*layers)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    learner = LearnerConfig.model_validate({"zero_stage": stage, "dtype": str(dtype).removeprefix("torch.")})
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=True),
        config=engine_config(learner, parameters, load_universal=False),
        dist_init_required=False,
    )
    taken = []
    for _ in range(steps):
        engine.backward(engine(torch.randn(4, WIDTH, dtype=dtype)).float().pow(2).mean())
        held = memory(reset=True)["VmRSS"]
        engine.step()
        taken.append((memory()["VmHWM"] - held) / parameters)
    return taken[1:]


def main() -> None:
    """Print the table, in Markdown."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| ZeRO stage | type | bytes a parameter | taken for the plan |", "|---|---|---|---|", sep="\n")
    for stage, planned in STEP_BYTES.items():
        for dtype, bytes_planned in zip((torch.float32, torch.bfloat16), planned, strict=True):
            if stage or dtype is torch.float32:  # stage 0 keeps no float32 copy of bfloat16 weights, and is refused
                values = ", ".join(f"{value:.1f}" for value in measure(stage, dtype))
                print(f"| {stage} | {str(dtype).removeprefix('torch.')} | {values} | {bytes_planned} |", flush=True)


if __name__ == "__main__":
    main()
