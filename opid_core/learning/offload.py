"""The learner's state off its GPU and back, while the inference engine has it (`engine.share_gpus`).

At ZeRO stages 1 and 2 DeepSpeed moves what its optimizer holds: the trained weights, their float32 copies, AdamW's
moments. At stage 3 it does so with an optimizer of its own alone, and `CampaignConfig` refuses to share GPUs then.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def offload(engine: DeepSpeedEngine, *frozen: torch.nn.Module) -> None:
    """Move all weights of `engine`, its optimizer's state and the models `frozen` to this machine's memory. Nothing
    where they are there already. Until `reload` nothing may be computed with them."""
    if engine.zero_optimization():
        engine.offload_states(pin_memory=True)  # page-locked memory is copied several times as fast
    _move_others(engine, frozen, torch.device("cpu"))
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reload(engine: DeepSpeedEngine, *frozen: torch.nn.Module) -> None:
    """Undo `offload`: the next update is, bit for bit, what it would have been. Nothing where nothing was moved."""
    if engine.zero_optimization():
        engine.reload_states()
    _move_others(engine, frozen, engine.device)


def _move_others(engine: DeepSpeedEngine, frozen: tuple[torch.nn.Module, ...], device: torch.device) -> None:
    """What ZeRO has no part in: at stage 0 everything, else what LoRA keeps frozen."""
    for model in frozen:
        model.to(device)
    if not engine.zero_optimization():
        engine.module.to(device)
    for parameter in engine.module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(device)
    optimizer: Any = engine.basic_optimizer
    for state in optimizer.state.values():
        for name, value in state.items():
            if name == "step":  # AdamW reads it on the CPU; DeepSpeed takes it along to the GPU
                state[name] = value.cpu()
            elif not engine.zero_optimization():
                state[name] = value.to(device)
