"""vLLM in this process: continuous batching without a barrier, and new weights into the live engine. With tensor
parallelism vLLM starts a process for each further GPU by itself.

Everything is asked for so that a log-prob means the same as the learner's: temperature 1, full vocabulary, natural log
(ALGORITHM, section 1). The same class runs on vLLM's CPU and GPU builds.
"""

from __future__ import annotations

import gc
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from opid_core.architectures import is_one_of, tied_weights
from opid_core.config import EngineConfig
from opid_core.errors import ConfigError, DataError, InfrastructureError, NumericsError
from opid_core.policies import load_tokenizer
from opid_core.policy_check import load_config, read_json, weight_files
from opid_core.rollout.engines import sleeping
from opid_core.rollout.engines.own_head import engine_arguments
from opid_core.samples import Ragged

if TYPE_CHECKING:
    from torch import Tensor

CANARY_TOKENS = 16
"""Tokens that the canary samples for each of its prompts."""

_TOO_LITTLE_MEMORY = re.compile("free memory on device|out of memory|error in memory profiling", re.IGNORECASE)
"""In the texts of vLLM and torch where others on the same GPU have, or gave back, memory while the engine started."""


@dataclass(frozen=True)
class Completion:
    """One finished response. `token_ids` [tokens] ends with the end-of-sequence token when `finish_reason` is `stop`
    (`length`: cut at `max_tokens`). `log_probs` [tokens] in nats: temperature 1, full vocabulary."""

    request_id: str
    token_ids: list[int]
    log_probs: list[float]
    finish_reason: str


class VllmEngine:
    """One vLLM engine that lives in this process.

    The same submissions in the same order give the same tokens and log-probs, in this process or a fresh one.
    """

    tokens_generated: int
    """All tokens sampled so far, whoever uses them."""
    policy_dir: Path
    """The HF folder of the weights that it holds."""

    def __init__(
        self,
        policy_dir: Path,
        config: EngineConfig,
        *,
        max_model_len: int,
        threads: int,
        seed: int,
        trained: bool = True,
    ) -> None:
        """Load the HF folder `policy_dir`. `max_model_len`: longest prompt + response in tokens. `trained`: new weights
        will be pushed; a tied policy then gets an output layer of its own, as large as its embeddings.

        Raises ConfigError for a missing vLLM and for sizes that vLLM refuses.
        """
        assert config.dtype != "auto", "decided before a campaign is opened: vLLM knows an `auto` of another meaning"
        on_gpu = prepare_process(threads)
        try:
            from vllm import EngineArgs, LLMEngine
        except ImportError as error:
            raise ConfigError(f"the engine needs vLLM: pip install 'opid[cpu]' or 'opid[gpu]' ({error})") from None
        self.config = config
        self.tokens_generated = 0
        self.policy_dir = policy_dir
        self._max_model_len = max_model_len
        self._running: dict[str, tuple[list[int], list[float]]] = {}
        self._stop_token_ids = end_tokens(policy_dir)
        policy_config = load_config(policy_dir)
        is_tied = policy_config.tie_word_embeddings
        self._takes_weights = trained or not is_tied
        self._tied = tied_weights(policy_config) if trained and is_tied else ()
        self._weight_names = {name for name in _weight_names(policy_dir) if not is_one_of(name, self._tied)}
        load_args: dict[str, Any] = {"load_format": "hf"}
        if trained and is_tied:
            load_args = engine_arguments(_stored_weights, self._tied)
        device_args: dict[str, Any] = (
            {
                "gpu_memory_utilization": config.gpu_memory_fraction,
                "enable_sleep_mode": trained and config.share_gpus,
            }
            if on_gpu
            # Per-request seeds need whole prefills on CPU: a CPU generator cannot be rewound after a chunk.
            else {
                "kv_cache_memory_bytes": config.kv_cache_mib << 20,
                "enforce_eager": True,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(max_model_len, 8192),
                # Shorter blocks let more of a prompt come from the prefix cache.
                "block_size": 32,
            }
        )
        try:
            self._engine = LLMEngine.from_engine_args(
                EngineArgs(
                    model=str(policy_dir),
                    skip_tokenizer_init=True,
                    dtype=config.dtype,
                    # Found by itself, files of Mistral's own format beside these would be taken instead.
                    config_format="hf",
                    max_model_len=max_model_len,
                    max_num_seqs=config.max_concurrent,
                    logprobs_mode="raw_logprobs",
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                    seed=seed,
                    tensor_parallel_size=config.tensor_parallel,
                    **load_args,
                    **device_args,
                )
            )
        except (AssertionError, RuntimeError, ValueError) as error:
            raise start_fault(policy_dir, error) from error

    def submit(
        self, request_id: str, prompt_ids: Sequence[int], *, max_tokens: int, temperature: float, seed: int
    ) -> None:
        """Queue one response. Sampling: the full distribution at `temperature` (0: greedy), up to `max_tokens`.

        Raises DataError where prompt and response may not fit into `max_model_len`, and while the engine sleeps.
        """
        sleeping.check_awake(self._engine, f"request {request_id}")
        if not 0 < len(prompt_ids) <= self._max_model_len - max_tokens:
            raise DataError(
                f"request {request_id}: {len(prompt_ids)} prompt tokens and {max_tokens} response tokens: the prompt "
                f"must not be empty, and both must fit into {self._max_model_len} tokens"
            )
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=1.0,
            top_k=0,
            seed=seed,
            logprobs=0,
            stop_token_ids=self._stop_token_ids,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,  # every token is seen, so that tokens_generated misses none
        )
        self._engine.add_request(request_id, {"prompt_token_ids": list(prompt_ids)}, params)
        self._running[request_id] = ([], [])

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self._running

    def step(self) -> list[Completion]:
        """Sample one token for every running sequence; return those that ended. Others go on, waiting ones enter.

        Raises InfrastructureError when the engine failed: close it and make a new one.
        """
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            outputs = self._engine.step()
        except (EngineDeadError, EngineGenerateError, RuntimeError) as error:
            raise InfrastructureError(f"the engine failed and has to be rebuilt: {error}") from error
        completions = []
        for output in cast(list[Any], outputs):
            sample = output.outputs[0]
            token_ids, log_probs = self._running[output.request_id]
            token_ids.extend(sample.token_ids)
            log_probs.extend(by_id[i].logprob for i, by_id in zip(sample.token_ids, sample.logprobs, strict=True))
            self.tokens_generated += len(sample.token_ids)
            if output.finished:
                del self._running[output.request_id]
                completions.append(Completion(output.request_id, token_ids, log_probs, str(sample.finish_reason)))
        return completions

    def advance(
        self, submissions: Sequence[Mapping[str, Any]], max_steps: int | None = None
    ) -> tuple[list[Completion], int, Path]:
        """`submit` each of `submissions` (its arguments by name), then `step` until a response ends, none runs or
        `max_steps` are done; returns the ended ones, how many tokens were sampled, and `policy_dir`. One call where
        many would cross a process boundary."""
        sampled_before = self.tokens_generated
        for submission in submissions:
            self.submit(**submission)
        completions: list[Completion] = []
        steps = 0
        while not completions and not self.is_idle and steps != max_steps:
            completions = self.step()
            steps += 1
        return completions, self.tokens_generated - sampled_before, self.policy_dir

    def load_policy(self, policy_dir: Path) -> None:
        """Put the weights of the HF folder `policy_dir`, another policy of the same shape (tied ones once), into the
        live engine and reset the prefix cache. By path: each process of a tensor-parallel engine reads its share.

        Raises DataError when a weight is missing: vLLM would keep its old value without a word. Only when idle.
        """
        self._check_idle("load_policy")
        sleeping.check_awake(self._engine, "load_policy")
        if not self._takes_weights:
            raise DataError("load_policy: this engine was made to play one tied policy (trained=False)")
        if missing := self._weight_names.difference(_weight_names(policy_dir)):
            raise DataError(f"weight push: {len(missing)} weights are missing, such as {min(missing)}")
        try:
            self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(policy_dir)})
            reset = self._engine.reset_prefix_cache()
        except RuntimeError as error:
            raise InfrastructureError(f"the engine did not take the new weights: {error}") from error
        if not reset:
            raise InfrastructureError("the engine kept a prefix cache of the old weights")
        self.policy_dir = policy_dir

    def sleep(self) -> None:
        """Leave the GPU to the learner, but for what a process keeps there: the weights wait in this machine's memory,
        the cache is dropped. Nothing where it sleeps already. Only when idle (DataError)."""
        self._check_idle("sleep")
        sleeping.sleep(self._engine)

    def wake(self) -> None:
        """Take the GPU back, with the weights that it had and an empty cache. Nothing where it is awake. Raises
        InfrastructureError where others have its memory."""
        sleeping.wake(self._engine)

    def _check_idle(self, call: str) -> None:
        if not self.is_idle:
            raise DataError(f"{call}: {len(self._running)} requests still run; step until all are finished")

    def close(self) -> None:
        """Stop the engine and free its memory. The process group stays: the learner may use it."""
        from vllm.distributed.parallel_state import destroy_model_parallel

        # vLLM's own shutdown, also run on garbage collection, does this and destroys the process's default group too.
        client: Any = self._engine.engine_core
        client._finalizer.detach()
        core = client.engine_core
        core.model_executor.shutdown()
        core.scheduler.shutdown()
        destroy_model_parallel()
        self._running.clear()
        del self._engine, client, core
        gc.unfreeze()
        gc.collect()


class SamplingEngine(Protocol):
    """`VllmEngine`, or a handle on one in another process."""

    @property
    def is_idle(self) -> bool: ...

    def submit(
        self, request_id: str, prompt_ids: Sequence[int], *, max_tokens: int, temperature: float, seed: int
    ) -> None: ...

    def step(self) -> Sequence[Completion]: ...


def canary_gap(
    engines: Sequence[SamplingEngine],
    learner_score: Callable[[Ragged, Ragged], Ragged],
    prompts: Sequence[Sequence[int]],
    tolerance: float,
) -> float:
    """Largest |engine log-prob - learner log-prob| in nats over responses to `prompts` (token ids) that each replica of
    `engines` samples. They must be idle; the sampled tokens count in `tokens_generated`.

    All have started and sampled before the learner is asked: an engine needs its share of a GPU free. Raises
    NumericsError above `tolerance`: that replica and the learner hold different policies.
    """
    completions: list[Completion] = []
    for engine in engines:
        if not engine.is_idle:
            raise DataError("canary: requests still run; step until all are finished")
        for index, prompt_ids in enumerate(prompts):
            engine.submit(f"canary-{index}", prompt_ids, max_tokens=CANARY_TOKENS, temperature=1.0, seed=index)
        finished: dict[str, Completion] = {}
        while not engine.is_idle:
            finished.update((completion.request_id, completion) for completion in engine.step())
        completions += [finished[f"canary-{index}"] for index in range(len(prompts))]
    responses = Ragged.from_rows([completion.token_ids for completion in completions], np.int32)
    sampled = np.concatenate([completion.log_probs for completion in completions])
    scored = learner_score(Ragged.from_rows([*prompts] * len(engines), np.int32), responses)
    gaps = np.maximum.reduceat(np.abs(sampled - scored.values), scored.offsets[: -1 : len(prompts)])
    gap, worst = float(gaps.max()), int(gaps.argmax())
    if not gap <= tolerance:
        which = f"engine replica {worst + 1} of {len(engines)}" if len(engines) > 1 else "engine"
        raise NumericsError(
            f"{which} and learner differ by {gap:.3g} nats on the same tokens (engine.canary_tolerance is "
            f"{tolerance:g}): the engine does not hold the learner's weights, or computes with "
            "another dtype. Push the weights again; a bfloat16 engine needs a tolerance of about 0.1"
        )
    return gap


def start_fault(policy_dir: Path, error: Exception) -> Exception:
    """What it means that vLLM does not start: memory that another process holds may be free at the next try, sizes that
    it refuses stay as they are; anything else stays what it is."""
    if _TOO_LITTLE_MEMORY.search(str(error)):
        return InfrastructureError(
            f"engine: too little free memory for its share, engine.gpu_memory_fraction, of the GPU: {error}"
        )
    if isinstance(error, ValueError):
        return ConfigError(f"engine: vLLM refuses {policy_dir} with this configuration: {error}")
    return error


def prepare_process(threads: int) -> bool:
    """Settings that vLLM reads when it is imported or started. Returns whether there is a GPU."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process: live weight pushes, start-up in seconds
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    import torch

    if torch.cuda.is_available():
        return True
    os.environ["VLLM_CPU_CI_ENV"] = "1"  # no warm-up compilation
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    if torch.get_num_threads() != threads:  # vLLM forbids changes once it has started
        torch.set_num_threads(threads)
    import torch._dynamo

    # vLLM compiles one small function (ranks of sampled tokens, unused here) at the first sample: many seconds.
    torch._dynamo.config.disable = True
    return False


def end_tokens(policy_dir: Path) -> list[int]:
    """Ids that end a response: the tokenizer's end-of-sequence token, and those of the generation config, or of
    config.json where there is none. Raises ConfigError for none, and for one that is no token of the policy."""
    config, generation = load_config(policy_dir), Path(policy_dir) / "generation_config.json"
    if generation.is_file():
        source, declared = generation, read_json(generation).get("eos_token_id")
    else:
        source, declared = Path(policy_dir) / "config.json", getattr(config, "eos_token_id", None)
    tokens = config.get_text_config().vocab_size
    ids: set[int] = set()
    for where, found in (
        *((f"{source}: eos_token_id", one) for one in (declared if isinstance(declared, list) else [declared])),
        (f"the tokenizer in {policy_dir}: its end-of-sequence token", load_tokenizer(policy_dir).eos_token_id),
    ):
        if found is None:
            continue
        if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < tokens:
            raise ConfigError(
                f"policy: {where} must be the id of a token, an integer from 0 to {tokens - 1}, got {found!r}"
            )
        ids.add(found)
    if not ids:
        raise ConfigError(
            f"policy: the tokenizer in {policy_dir} names no end-of-sequence token: no response would end"
        )
    return sorted(ids)


def _weight_names(policy_dir: Path) -> list[str]:
    """Names of all weights in the folder's safetensors files."""
    from safetensors import safe_open

    names: list[str] = []
    for path in weight_files(policy_dir):
        with safe_open(path, framework="pt") as weights:
            names.extend(weights.keys())
    return names


def _stored_weights(policy_dir: Path) -> Iterator[tuple[str, Tensor]]:
    """All weights of the folder's safetensors files, one at a time."""
    from safetensors import safe_open

    for path in weight_files(policy_dir):
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - no mapping: it has no __iter__
                yield name, weights.get_tensor(name)
