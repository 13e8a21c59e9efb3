"""DeepSpeed on this machine: the process around an engine, and the engine's configuration."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from opid_core.config import LearnerConfig

RANK_TIMEOUT = timedelta(hours=2)
"""Longest wait for another rank: one of them may be writing or converting a large state."""


def prepare_process(threads: int) -> Any:
    """Import DeepSpeed for this machine's device, quietly, and join the process group (of one rank where none)."""
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    os.environ.setdefault("LOCAL_RANK", "0")
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        share = max(1, threads // int(os.environ.get("WORLD_SIZE", "1")))
        if torch.get_num_threads() != share:
            torch.set_num_threads(share)
        # Else sums whose terms several threads bring, as the gradient of an index that names a row twice, are added in
        # the order in which these come. On a GPU some layers have no such kernel, and nothing is promised there.
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    with _without_mlflow():
        import deepspeed
    from deepspeed.ops import __compatible_ops__
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # The shared-memory collectives only help several CPU ranks on one host, and are compiled for a minute first.
    __compatible_ops__["deepspeed_shm_comm"] = False
    if not torch.distributed.is_initialized():
        backend = "nccl" if on_gpu else "gloo"
        if "RANK" in os.environ:
            torch.distributed.init_process_group(backend, timeout=RANK_TIMEOUT)
        else:
            store = torch.distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    deepspeed.init_distributed(auto_mpi_discovery=False)
    return deepspeed


@contextmanager
def _without_mlflow() -> Iterator[None]:
    """DeepSpeed's autotuner, which nothing here uses, imports MLflow where that is installed: two fifths of the time
    that the import of DeepSpeed then takes."""
    if "mlflow" in sys.modules:
        yield
        return
    sys.modules["mlflow"] = None  # pyright: ignore[reportArgumentType] - an ImportError for whoever asks
    try:
        yield
    finally:
        del sys.modules["mlflow"]


def engine_config(config: LearnerConfig, parameters: int, *, load_universal: bool) -> dict[str, Any]:
    """DeepSpeed's configuration of an engine for a policy of so many parameters; `load_universal`: it will continue
    from a universal checkpoint."""
    bucket = min(parameters, 100_000_000)  # elements; DeepSpeed allocates whole buckets
    return {
        "train_micro_batch_size_per_gpu": 1,  # sizes are ours: boundaries are set by hand
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_gradient_norm,
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
        },
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.dtype == "bfloat16", "check_grad_overflow": True},
        "checkpoint": {"load_universal": load_universal},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
