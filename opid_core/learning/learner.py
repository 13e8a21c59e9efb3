"""The update (ALGORITHM, section 7): a DeepSpeed engine around the policy.

The loss of a mini-batch is one number over all its samples; micro-batches and ranks add up their shares of it, so the
result is the same whatever the split. All ranks call the same methods with the same arguments, take their share of the
micro-batches, and return the same.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from opid_core.config import LearnerConfig
from opid_core.errors import ConfigError, DataError, InfrastructureError, NumericsError, OutOfMemory
from opid_core.learning import checkpoint
from opid_core.learning.deepspeed_setup import engine_config, prepare_process
from opid_core.learning.lora import adapt, disabled, load_adapter, save_adapter
from opid_core.learning.losses import (
    TOKEN_SUMS,
    Loss,
    LossInput,
    clipped_loss,
    entropy_loss,
    normalizer,
    policy_metrics,
    reference_loss,
)
from opid_core.learning.offload import offload, reload
from opid_core.learning.scoring import ResponseScorer, frozen_policy, response_mask, score
from opid_core.learning.shared_prefixes import batches_of, share_prefixes
from opid_core.policies import copy_beside_weights, load_model, save_policy
from opid_core.samples import Ragged, Samples

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc", "ALLOC_FAILED")
"""In the texts of the RuntimeErrors that torch raises where the CPU's or a CUDA library's memory runs out."""


class Learner:
    """The trained policy with its optimizer, on one rank of a (possibly one-rank) process group."""

    def __init__(
        self,
        policy_dir: str | Path,
        config: LearnerConfig,
        *,
        threads: int,
        seed: int,
        state: str | Path | None = None,
        adapter: str | Path | None = None,
    ) -> None:
        """Load the HF folder `policy_dir`; on CPU with `threads` threads shared among the ranks, on CUDA where there is
        one. With `config.lora` it is the frozen base, and `adapter` the folder of the adapters to begin with (None:
        new ones, which change nothing yet).

        `state`: a folder that `save` wrote, to continue from: weights, optimizer and random state. On the same number
        of ranks the next update gives bit-identical weights; on another, equal ones up to float error and a random
        state from `seed`. Raises ConfigError where the weights cannot be loaded or the state is of another ZeRO stage
        or dtype, DataError where the state is missing, damaged or of another model; OutOfMemory.
        """
        assert config.shared_prefixes != "auto", "decided before a campaign is opened"
        self.config = config
        self._policy_dir = Path(policy_dir)
        self._adapter_dir = adapter
        self._reference: tuple[Path, PreTrainedModel] | None = None
        with _memory_errors(config.micro_batch_tokens):
            self._load(threads, seed, state)

    def _load(self, threads: int, seed: int, state: str | Path | None) -> None:
        deepspeed = prepare_process(threads)
        config, policy_dir = self.config, self._policy_dir
        torch.manual_seed(seed)
        try:
            self._policy: PreTrainedModel = load_model(policy_dir, getattr(torch, config.dtype), use_safetensors=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"policy: {policy_dir} cannot be loaded: {error}") from error
        # Each export needs them, and the folder may be one of a cache, which keeps those used last alone.
        self._beside_weights = tempfile.TemporaryDirectory()
        copy_beside_weights(policy_dir, self._beside_weights.name)
        shutil.copyfile(policy_dir / "config.json", Path(self._beside_weights.name, "config.json"))
        if config.shared_prefixes:
            share_prefixes(self._policy)
        if config.lora is not None:
            adapt(self._policy, config.lora, seed)
            if self._adapter_dir is not None:
                load_adapter(self._policy, self._adapter_dir)
        self._shapes = {name: list(parameter.shape) for name, parameter in self._trained()}
        saved = checkpoint.read_record(Path(state), config, self._shapes) if state is not None else None
        convert = saved is not None and saved.needs_conversion(config)
        if config.gradient_checkpointing:
            self._policy.gradient_checkpointing_enable()
        scorer = ResponseScorer(self._policy)
        trained = [parameter for _, parameter in self._trained()]
        optimizer = torch.optim.AdamW(
            trained,
            lr=config.learning_rate,
            betas=config.adam_betas,
            weight_decay=config.weight_decay,
        )
        parameters = sum(parameter.numel() for parameter in trained)
        self._engine, *_ = deepspeed.initialize(
            model=scorer,
            optimizer=optimizer,
            config=engine_config(config, parameters, load_universal=convert),
            dist_init_required=False,
        )
        torch.manual_seed(seed + torch.distributed.get_rank())
        if state is not None:
            try:
                checkpoint.load(self._engine, Path(state))
            except BaseException:
                self.close()
                raise

    def score(self, prompts: Ragged, responses: Ragged, reference: Path | None = None) -> Ragged:
        """Log-probs (float32, nats, temperature 1) of the tokens of `responses`, row by row, under the current policy
        or under the frozen one in the HF folder `reference`, which stays loaded on every rank (with LoRA it is there
        already, if it is the base).

        Raises DataError for an empty prompt, and OutOfMemory.
        """
        if not prompts.lengths.all():
            raise DataError(f"score: row {int(prompts.lengths.argmin())} has a prompt without tokens")
        budget = self.config.micro_batch_tokens
        parts = batches_of(prompts, responses, budget, shares=self.config.shared_prefixes is True)
        scores = Ragged(np.zeros(len(responses.values), np.float32), responses.offsets)
        is_base = self.config.lora is not None and reference == self._policy_dir
        with _memory_errors(budget), disabled(self._policy) if is_base else nullcontext():
            model = self._engine if reference is None or is_base else self._frozen(reference)
            for part, weight, _ in _rounds(parts):
                rows = np.array(part)
                part_scores = score(model, prompts.take(rows), responses.take(rows), micro_batch_tokens=budget)
                if weight:
                    for index, values in zip(part, part_scores, strict=True):
                        scores[index][:] = values
            if torch.distributed.get_world_size() > 1:
                shared = torch.from_numpy(scores.values).to(self._engine.device)
                torch.distributed.all_reduce(shared)  # one rank has the value, the others 0: an exact sum
                scores = Ragged(shared.cpu().numpy(), responses.offsets)
        return scores

    def _frozen(self, folder: Path) -> PreTrainedModel:
        if self._reference is None or self._reference[0] != folder:
            self._reference = None  # free the other one first
            self._reference = folder, frozen_policy(folder, self.config)
        return self._reference[1]

    def update(
        self,
        samples: Samples,
        *,
        seed: int,
        learning_rate: float | None = None,
        extra_loss: Loss | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """Train on `samples` for the configured epochs, in mini-batches shuffled by `seed`, with `learning_rate` (None:
        the config's); `extra_loss` is added to the PPO loss, the KL to the reference policy and the entropy bonus.

        Returns means over response tokens (the losses: over optimizer steps; gradient_norm: before clipping)
        and the counts optimizer_steps and tokens. `on_progress` is called on rank 0 after each optimizer step with
        (steps done, steps in all). Raises DataError for samples that do not fit together; NumericsError, with the
        weights as the last optimizer step left them, for a non-finite loss or gradient; OutOfMemory. Make a new
        learner after the last two.
        """
        _check(samples, self.config)
        self._engine.train()
        for group in self._engine.optimizer.param_groups:  # each time: a stored state brings its last rate with it
            group["lr"] = self.config.learning_rate if learning_rate is None else learning_rate
        totals: dict[str, float] = {}
        steps = 0
        all_steps = self.config.epochs * -(-len(samples) // self.config.mini_batch_samples)
        for epoch in range(self.config.epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(samples))
            for start in range(0, len(order), self.config.mini_batch_samples):
                batch = samples.select(order[start : start + self.config.mini_batch_samples])
                with _memory_errors(self.config.micro_batch_tokens):
                    sums = self._step(batch, extra_loss)
                for name, value in sums.items():
                    totals[name] = totals.get(name, 0.0) + value
                steps += 1
                if on_progress is not None and torch.distributed.get_rank() == 0:
                    on_progress(steps, all_steps)
        tokens = totals["tokens"]
        metrics = {name: total / steps for name, total in totals.items() if name not in TOKEN_SUMS}
        metrics |= {name: totals[name] / tokens for name in ("entropy", "reference_kl") if name in totals}
        return metrics | policy_metrics(totals) | {"optimizer_steps": float(steps), "tokens": tokens}

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The full trained weights, one at a time, a tied one once; every rank must draw all. Names are the HF
        folder's, with LoRA those of its layers and `lora_A` or `lora_B`."""
        if self.config.zero_stage == 3:
            self._engine.empty_partition_cache()  # on a GPU a forward pass may have left weights on their way
        for name, parameter in self._trained():
            if self.config.zero_stage < 3:
                yield name, parameter.detach()
            else:
                from deepspeed.runtime.zero import GatheredParameters

                with GatheredParameters([parameter]):
                    full = parameter.detach().clone()
                yield name, full

    def save(self, folder: str | Path) -> None:
        """Write weights, optimizer and random state: what a new learner's `state` continues from."""
        with _memory_errors(self.config.micro_batch_tokens):
            checkpoint.save(self._engine, Path(folder), self.config, self._shapes)

    def export(self, folder: str | Path) -> None:
        """Write an HF folder: safetensors, config.json, and what lay beside the weights of the base policy when it was
        loaded; with LoRA the adapter's folder."""
        first = torch.distributed.get_rank() == 0
        with _memory_errors(self.config.micro_batch_tokens):
            weights = {name: tensor.cpu() for name, tensor in self.named_weights() if first}
            if first and self.config.lora is not None:
                save_adapter(folder, weights, self.config.lora, base=self._beside_weights.name)
            elif first:
                save_policy(self._policy, folder, files_from=self._beside_weights.name, state_dict=weights)

    def offload(self) -> None:
        """Leave the GPU to the inference engine: weights, optimizer and reference wait in this machine's memory, until
        `reload`. At ZeRO stages 0 to 2; nothing where they are there already."""
        offload(self._engine, *(self._reference[1:] if self._reference else ()))

    def reload(self) -> None:
        """Come back to the GPU. Raises InfrastructureError where another process has its memory."""
        try:
            with _memory_errors(self.config.micro_batch_tokens):
                reload(self._engine, *(self._reference[1:] if self._reference else ()))
        except OutOfMemory as error:  # smaller micro-batches, which an OutOfMemory asks for, would not help
            raise InfrastructureError(
                f"the learner could not take its GPU back; lower engine.gpu_memory_fraction: {error.__cause__}"
            ) from error

    def close(self) -> None:
        """Free the weights and the optimizer, after a failure too. The process group stays: the inference engine may
        use it."""
        if not hasattr(self, "_engine"):
            return
        self._beside_weights.cleanup()
        self._engine.destroy()
        del self._engine, self._policy
        self._reference = None
        gc.collect()  # DeepSpeed's objects refer to each other in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(name, one) for name, one in self._policy.named_parameters() if one.requires_grad]

    def _step(self, batch: Samples, extra_loss: Loss | None) -> dict[str, float]:
        """One optimizer step on a mini-batch; returns sums over its tokens, its losses and its gradient norm."""
        world = torch.distributed.get_world_size()
        denominator = normalizer(batch.response_ids.lengths, self.config.aggregation)
        parts = batches_of(
            batch.prompt_ids,
            batch.response_ids,
            self.config.micro_batch_tokens,
            shares=self.config.shared_prefixes is True,
        )
        sums: dict[str, Tensor] = {}
        for part, weight, is_last in _rounds(parts):
            self._engine.set_gradient_accumulation_boundary(is_last)
            loss, part_sums = self._loss(batch.select(np.array(part)), denominator, extra_loss)
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

    def _loss(self, samples: Samples, denominator: float, extra_loss: Loss | None) -> tuple[Tensor, dict[str, Tensor]]:
        """This part's share of the mini-batch's loss, and detached sums over its tokens."""
        config, responses = self.config, samples.response_ids
        trains_entropy = config.entropy_coefficient > 0
        log_probs, entropy = self._engine(samples.prompt_ids, responses, entropy=True, train_entropy=trains_entropy)
        assert entropy is not None
        mask = torch.from_numpy(response_mask(responses)).to(log_probs.device)

        def padded(rows: Ragged) -> Tensor:
            return torch.from_numpy(rows.padded(mask.shape[1])).to(mask.device)

        with_skill = torch.from_numpy(samples.has("skill_log_probs")).to(mask.device)
        has_reference = samples.has("reference_log_probs").any()
        inputs = LossInput(
            log_probs=log_probs,
            old_log_probs=padded(samples.tokens("old_log_probs")),
            advantages=padded(Ragged(samples.advantages(), responses.offsets)),
            response_mask=mask,
            aggregation=config.aggregation,
            normalizer=denominator,
            reference_log_probs=padded(samples.tokens("reference_log_probs")) if has_reference else None,
            skill_log_probs=padded(samples.tokens("skill_log_probs")),
            skill_mask=mask & with_skill[:, None],
            entropy=entropy,
        )
        clip = {"clip_low": config.clip_low, "clip_high": config.clip_high, "dual_clip": config.dual_clip}
        losses: list[Loss] = [partial(clipped_loss, **clip)]
        if has_reference:
            losses.append(partial(reference_loss, coefficient=config.kl_coefficient))
        if trains_entropy:
            losses.append(partial(entropy_loss, coefficient=config.entropy_coefficient))
        if extra_loss is not None:
            losses.append(extra_loss)
        shares, sums = [], {"entropy": entropy.detach().sum()}
        for loss in losses:
            share, numbers = loss(inputs)
            shares.append(share)
            sums |= numbers
        total = sum(shares[1:], shares[0])
        return total, sums | {"loss": total.detach()}


def _rounds(parts: Sequence[list[int]]) -> Iterator[tuple[list[int], float, bool]]:
    """This rank's (part, weight, whether it is the last) of each round.

    Every rank takes part in every round, as ZeRO needs; one without a part repeats the first with weight 0.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for first in range(0, len(parts), world):
        has_part = first + rank < len(parts)
        yield parts[first + rank if has_part else 0], float(has_part), first + world >= len(parts)


@contextmanager
def _memory_errors(micro_batch_tokens: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the tensors that filled the memory
        raise OutOfMemory(
            f"out of memory with learner.micro_batch_tokens = {micro_batch_tokens}; a smaller one needs less: "
            + str(error).partition("\n")[0]
        ) from error


def _check(samples: Samples, config: LearnerConfig) -> None:
    if not len(samples):
        raise DataError("update: there is no sample to learn from")
    lengths = samples.response_ids.lengths
    if not (samples.prompt_ids.lengths.all() and lengths.all()):
        empty = int(np.minimum(samples.prompt_ids.lengths, lengths).argmin())
        raise DataError(f"update: sample {empty} has an empty prompt or response")
    with_reference = samples.has("reference_log_probs")
    if config.kl_coefficient > 0 and not with_reference.any():
        raise DataError("update: learner.kl_coefficient is above 0, but the samples have no reference log-probs")
    if with_reference.any() and not with_reference.all():
        raise DataError(
            f"update: sample {int(with_reference.argmin())}: either all samples have reference log-probs, or none"
        )
    for name in ("old_log_probs", "reference_log_probs", "skill_advantages", "skill_log_probs"):
        has = samples.has(name)
        if not has.any():
            continue
        values = samples.tokens(name)
        if (wrong := np.flatnonzero(has & (values.lengths != lengths))).size:
            raise DataError(
                f"update: sample {wrong[0]}: {name} has {values.lengths[wrong[0]]} values, expected one for each of "
                f"{lengths[wrong[0]]} response tokens"
            )
        if (bad := np.flatnonzero(~np.isfinite(values.values))).size:
            sample = np.searchsorted(values.offsets, bad[0], side="right") - 1
            raise NumericsError(f"update: sample {sample}: {name} is not finite: nothing was updated")
    if not np.isfinite(samples.advantages()).all():
        raise NumericsError("update: an advantage is not finite: nothing was updated")
