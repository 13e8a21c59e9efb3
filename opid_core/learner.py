"""The update (ALGORITHM, section 7): a DeepSpeed engine around the policy.

The loss of a mini-batch is one number over all its samples; micro-batches and ranks add up their shares of it, so the
result is the same whatever the split. All ranks are given the same samples and take their share of the micro-batches.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from opid_core.config import LearnerConfig
from opid_core.errors import ConfigError, DataError, NumericsError
from opid_core.losses import kl_loss, normalizer, policy_loss, policy_metrics
from opid_core.models import save_policy
from opid_core.scoring import ResponseScorer, TokenSequence, micro_batches, response_mask, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TrainingSample:
    """One step sample: token ids, and one value a response token (log-probs in nats, temperature 1)."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    old_log_probs: Sequence[float] | np.ndarray
    reference_log_probs: Sequence[float] | np.ndarray | None
    advantages: Sequence[float] | np.ndarray


class Learner:
    """The trained policy with its optimizer, on one rank of a (possibly one-rank) process group."""

    def __init__(self, policy_dir: str | Path, config: LearnerConfig, *, threads: int, seed: int) -> None:
        """Load the HF folder `policy_dir`; on CPU with `threads` threads, on CUDA where there is one.

        Raises ConfigError where the weights cannot be loaded.
        """
        if config.zero_stage == 0 and config.dtype != "float32":
            raise ConfigError(
                f"learner.zero_stage: 0 keeps no float32 master weights for dtype {config.dtype}; use 1, 2 or 3"
            )
        deepspeed = _prepare_process(threads)
        from transformers import AutoModelForCausalLM

        self.config = config
        self._policy_dir = Path(policy_dir)
        torch.manual_seed(seed)
        try:
            self._policy: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                policy_dir, dtype=getattr(torch, config.dtype)
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"policy: {policy_dir} cannot be loaded: {error}") from error
        if config.gradient_checkpointing:
            self._policy.gradient_checkpointing_enable()
        scorer = ResponseScorer(self._policy)
        optimizer = torch.optim.AdamW(
            scorer.parameters(),
            lr=config.learning_rate,
            betas=config.adam_betas,
            weight_decay=config.weight_decay,
        )
        parameters = sum(parameter.numel() for parameter in scorer.parameters())
        self._engine, *_ = deepspeed.initialize(
            model=scorer, optimizer=optimizer, config=_deepspeed_config(config, parameters), dist_init_required=False
        )

    def score(self, sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
        """Log-probs (float32, nats, temperature 1) of the response tokens under the current policy."""
        return score(self._engine, sequences, micro_batch_tokens=self.config.micro_batch_tokens)

    def update(self, samples: Sequence[TrainingSample], *, seed: int) -> dict[str, float]:
        """Train on `samples` for the configured epochs, in mini-batches shuffled by `seed`.

        Returns means over response tokens (policy_loss and loss: over optimizer steps; gradient_norm: before clipping)
        and the counts optimizer_steps and tokens. Raises DataError for samples that do not fit together, and
        NumericsError, with the weights as the last optimizer step left them, for a non-finite loss or gradient; make a
        new learner then.
        """
        _check(samples, self.config)
        self._engine.train()
        totals: dict[str, float] = {}
        steps = 0
        for epoch in range(self.config.epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(samples))
            for start in range(0, len(order), self.config.mini_batch_samples):
                batch = [samples[i] for i in order[start : start + self.config.mini_batch_samples]]
                for name, value in self._step(batch).items():
                    totals[name] = totals.get(name, 0.0) + value
                steps += 1
        tokens = totals["tokens"]
        metrics = {name: totals[name] / steps for name in ("loss", "policy_loss", "gradient_norm")}
        metrics |= {name: totals[name] / tokens for name in ("entropy", "reference_kl") if name in totals}
        return metrics | policy_metrics(totals) | {"optimizer_steps": float(steps), "tokens": tokens}

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The full weights under the HF folder's names, one at a time; every rank must draw all of them."""
        for name, parameter in self._policy.named_parameters():
            if self.config.zero_stage < 3:
                yield name, parameter.detach()
            else:
                from deepspeed.runtime.zero import GatheredParameters

                with GatheredParameters([parameter]):
                    full = parameter.detach().clone()
                yield name, full

    def save(self, folder: str | Path) -> None:
        """Write weights, optimizer and random state, for `load` on the same number of ranks."""
        self._engine.save_checkpoint(str(folder), tag="state", client_state={"torch_random": torch.get_rng_state()})

    def load(self, folder: str | Path) -> None:
        """Continue from `save`: the next update gives bit-identical weights. Raises DataError where that fails."""
        if not (Path(folder) / "state").is_dir():
            raise DataError(f"{folder}: holds no learner state (its folder `state` is missing)")
        path, client_state = self._engine.load_checkpoint(str(folder), tag="state")
        if path is None:
            raise DataError(f"{folder}: its learner state does not fit this policy or number of ranks")
        torch.set_rng_state(client_state["torch_random"])

    def export(self, folder: str | Path) -> None:
        """Write an HF folder: safetensors, config.json, and the tokenizer's files of the base policy."""
        weights = {name: tensor.cpu() for name, tensor in self.named_weights()}
        if torch.distributed.get_rank() == 0:
            save_policy(self._policy, folder, tokenizer_from=self._policy_dir, state_dict=weights)

    def close(self) -> None:
        """Free the weights and the optimizer. The process group stays: the inference engine may use it."""
        self._engine.destroy()
        del self._engine, self._policy

    def _step(self, batch: Sequence[TrainingSample]) -> dict[str, float]:
        """One optimizer step on a mini-batch; returns sums over its tokens, its losses and its gradient norm."""
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        sequences = [TokenSequence(sample.prompt_ids, sample.response_ids) for sample in batch]
        denominator = normalizer([len(sample.response_ids) for sample in batch], self.config.aggregation)
        parts = micro_batches([len(sequence) for sequence in sequences], self.config.micro_batch_tokens)
        sums: dict[str, Tensor] = {}
        for first in range(0, len(parts), world):
            # Every rank takes part in every round; one without a part repeats the first with weight 0.
            weight = float(first + rank < len(parts))
            part = parts[first + rank] if weight else parts[0]
            self._engine.set_gradient_accumulation_boundary(first + world >= len(parts))
            loss, part_sums = self._loss([batch[i] for i in part], [sequences[i] for i in part], denominator)
            self._engine.backward(loss * (weight * world))  # DeepSpeed averages over ranks, the loss is a sum
            for name, value in part_sums.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + weight * value
        names = sorted(sums)
        values = torch.stack([sums[name].double() for name in names])
        if world > 1:
            torch.distributed.all_reduce(values)
        totals = dict(zip(names, values.tolist(), strict=True))
        if not np.isfinite(totals["loss"]):
            raise NumericsError(f"the loss is {totals['loss']}: nothing was updated")
        gradient_norm = self._apply_gradients()
        if not np.isfinite(gradient_norm):
            raise NumericsError("a gradient is not finite: nothing was updated")
        return totals | {"gradient_norm": gradient_norm}

    def _apply_gradients(self) -> float:
        """One optimizer step unless a gradient is not finite; returns the gradient norm before clipping."""
        if self.config.zero_stage == 0:  # DeepSpeed would neither check nor report here
            gradients = [p.grad for p in self._policy.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            if np.isfinite(norm):
                self._engine.step()
            return norm
        self._engine.step()  # ZeRO checks the gradients of all ranks first, and skips the step
        return float(self._engine.get_global_grad_norm()) if self._engine.was_step_applied() else float("nan")

    def _loss(
        self, samples: Sequence[TrainingSample], sequences: Sequence[TokenSequence], denominator: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """This part's share of the mini-batch's loss, and detached sums over its tokens."""
        config = self.config
        log_probs, entropy = self._engine(sequences, entropy=True)
        assert entropy is not None
        device = log_probs.device
        mask = torch.from_numpy(response_mask(sequences)).to(device)

        def padded(rows: Sequence[Any]) -> Tensor:
            values = np.zeros(mask.shape, np.float32)
            for row, entries in zip(values, rows, strict=True):
                row[: len(entries)] = entries
            return torch.from_numpy(values).to(device)

        loss, sums = policy_loss(
            log_probs,
            padded([sample.old_log_probs for sample in samples]),
            padded([sample.advantages for sample in samples]),
            mask,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
            aggregation=config.aggregation,
            normalizer=denominator,
        )
        sums |= {"policy_loss": loss.detach(), "entropy": entropy.sum()}
        if samples[0].reference_log_probs is not None:
            reference = padded([sample.reference_log_probs for sample in samples])
            loss = loss + config.kl_coefficient * kl_loss(
                log_probs, reference, mask, aggregation=config.aggregation, normalizer=denominator
            )
            sums["reference_kl"] = kl_loss(
                log_probs.detach(), reference, mask, aggregation="token-mean", normalizer=1.0
            )
        return loss, sums | {"loss": loss.detach()}


def _check(samples: Sequence[TrainingSample], config: LearnerConfig) -> None:
    if not samples:
        raise DataError("update: there is no sample to learn from")
    with_reference = samples[0].reference_log_probs is not None
    if config.kl_coefficient > 0 and not with_reference:
        raise DataError("update: learner.kl_coefficient is above 0, but the samples have no reference log-probs")
    for index, sample in enumerate(samples):
        if not len(sample.prompt_ids) or not len(sample.response_ids):
            raise DataError(f"update: sample {index} has an empty prompt or response")
        if (sample.reference_log_probs is not None) != with_reference:
            raise DataError(f"update: sample {index}: either all samples have reference log-probs, or none")
        for name in ("old_log_probs", "reference_log_probs", "advantages"):
            values = getattr(sample, name)
            if values is None:
                continue
            if np.shape(values) != (len(sample.response_ids),):
                raise DataError(
                    f"update: sample {index}: {name} has shape {np.shape(values)}, expected one value for each of "
                    f"{len(sample.response_ids)} response tokens"
                )
            if not np.isfinite(values).all():
                raise NumericsError(f"update: sample {index}: {name} is not finite: nothing was updated")


def _deepspeed_config(config: LearnerConfig, parameters: int) -> dict[str, Any]:
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
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }


def _prepare_process(threads: int) -> Any:
    """Import DeepSpeed for this machine's device, quietly, and join the process group (of one rank where none)."""
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
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
            torch.distributed.init_process_group(backend)
        else:
            store = torch.distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", "0")
    deepspeed.init_distributed(auto_mpi_discovery=False)
    return deepspeed
