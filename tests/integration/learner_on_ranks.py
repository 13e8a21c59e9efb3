"""What each of several ranks does for test_learner_ranks.py; started by torchrun with the folder that both share.

Reads <folder>/policy, samples.pkl and the states one-<stage>; writes rank-<rank>.pt, and the states two-<stage> and,
of adapters, lora-<stage>.
"""

import gc
import pickle
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opid_core.errors import DataError, OutOfMemory
from opid_core.learning import last_layer
from opid_core.learning.learner import Learner
from opid_core.samples import Ragged, Samples
from tests.integration.learner_cases import CONFIG, DISTILLATION_AT, LORA, sequences_of, weights


def main(folder: Path) -> None:
    samples = pickle.loads((folder / "samples.pkl").read_bytes())

    def make(threads: int = 2, **arguments) -> Learner:
        state = arguments.pop("state", None)
        adapter = arguments.pop("adapter", None)
        config = CONFIG.model_copy(update=arguments)
        return Learner(folder / "policy", config, threads=threads, seed=0, state=state, adapter=adapter)

    make().close()
    gc.freeze()  # each learner that is closed collects what it leaves, and need not go through the libraries
    results: dict[Any, Any] = {stage: of_stage(stage, make, folder, samples) for stage in (0, 1, 2, 3)}
    rank = torch.distributed.get_rank()
    if rank == 0:
        shutil.copytree(folder / "two-1", folder / "damaged")
        spoil(folder / "damaged" / "state" / "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    torch.distributed.barrier()
    try:
        make(threads=4, zero_stage=1, state=folder / "damaged")
    except DataError as error:
        results["damaged"] = str(error)
    results["threads"] = torch.get_num_threads()
    results["out of memory"] = out_of_memory(make, samples)
    torch.save(results, folder / f"rank-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def of_stage(stage, make, folder, samples) -> dict[str, Any]:
    result: dict[str, Any] = {"progress": []}
    learner = make(zero_stage=stage)
    result["scores"] = learner.score(*sequences_of(samples))
    result["scores of 12"] = learner.score(*sequences_of(samples.select(np.arange(12))))
    result["metrics"] = learner.update(samples, seed=3, on_progress=lambda *steps: result["progress"].append(steps))
    result["updated"] = weights(learner)
    learner.export(folder / f"export-{stage}")
    learner.save(folder / f"two-{stage}")
    result["random"] = float(torch.rand(1))
    learner.update(samples, seed=4)
    result["uninterrupted"] = weights(learner)
    learner.close()

    learner = make(zero_stage=stage, state=folder / f"two-{stage}")
    result["random after resume"] = float(torch.rand(1))
    learner.update(samples, seed=4)
    result["resumed"] = weights(learner)
    learner.close()

    learner = make(zero_stage=stage, state=folder / f"one-{stage}")
    learner.update(samples, seed=4)
    result["resumed from one"] = weights(learner)
    learner.close()

    if stage < 3:
        learner = make(zero_stage=stage)
        away(learner)
        learner.update(samples, seed=3)
        away(learner)
        learner.score(*sequences_of(samples))
        away(learner)
        learner.save(folder / f"away-{stage}")
        learner.update(samples, seed=4)
        result["away between updates"] = weights(learner)
        learner.close()

        learner = make(zero_stage=stage, state=folder / f"away-{stage}")
        learner.update(samples, seed=4)
        result["resumed from what was away"] = weights(learner)
        learner.close()

    if stage in DISTILLATION_AT:
        learner = make(zero_stage=stage, lora=LORA)
        result["adapters at first"] = weights(learner)
        learner.update(samples, seed=3)
        result["adapters"] = weights(learner)
        result["base scores"] = learner.score(*sequences_of(samples), folder / "policy")
        learner.save(folder / f"lora-{stage}")
        learner.export(folder / f"adapter-{stage}")
        learner.update(samples, seed=4)
        result["adapters uninterrupted"] = weights(learner)
        learner.close()

        learner = make(zero_stage=stage, lora=LORA, state=folder / f"lora-{stage}", adapter=folder / f"adapter-{stage}")
        learner.update(samples, seed=4)
        result["adapters resumed"] = weights(learner)
        learner.close()

        learner = make(zero_stage=stage)
        learner.update(samples, seed=3, extra_loss=DISTILLATION_AT[stage].loss)
        result["distilled"] = weights(learner)
        learner.close()

        learner = make(zero_stage=stage, micro_batch_tokens=100_000)
        whole, last_layer.LOGITS_AT_ONCE = last_layer.LOGITS_AT_ONCE, 1000  # a few positions of the many
        result["metrics in one micro-batch"] = learner.update(samples, seed=3)
        result["updated in one micro-batch"] = weights(learner)
        last_layer.LOGITS_AT_ONCE = whole
        learner.close()
    return result


def away(learner: Learner) -> None:
    """As while an engine has its GPU, told twice as after a fault."""
    for move in 2 * [learner.offload] + 2 * [learner.reload]:
        move()


def spoil(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


def out_of_memory(make, samples) -> dict[str, Any]:
    """The errors of a scoring and an update that need more memory than there is, and the scores of the learner after.

    There is one micro-batch, the same on all ranks: one that had enough would wait for the others.
    """
    learner = make(zero_stage=1)
    prompt = Ragged.from_rows([[5] * 4_000_000], np.int32)  # 1 GB as hidden states
    one = Ragged.from_rows([[5]], np.int32)
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(0.005)
    else:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, resource.RLIM_INFINITY))
    result = {}
    try:
        learner.score(prompt, one)
    except OutOfMemory as error:
        result["score"] = str(error)
    try:
        value, zero = Ragged.from_rows([[-1.0]], np.float32), np.zeros(1, np.float32)
        log_probs = {"old_log_probs": value, "reference_log_probs": value}
        advantages = {"outcome_advantage": zero, "step_advantage": zero, "skill_advantages": value}
        learner.update(Samples.from_columns(prompt_ids=prompt, response_ids=one, **log_probs, **advantages), seed=0)
    except OutOfMemory as error:
        result["update"] = str(error)
    learner.close()
    learner = make(zero_stage=1)
    result["scores after"] = learner.score(*sequences_of(samples))
    learner.close()
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]))
