"""The live processes of a campaign: its engine and its learner, each in processes of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from infra.groups import Folder, folder_in
from infra.manifest import FolderRecord, state_files, texts_only
from infra.store import STATE_FOLDER, CampaignStore, folder_path, weights_only
from opid_core.config import CampaignConfig
from opid_core.policies import load_tokenizer
from opid_core.rollout.prompting import with_template_arguments
from opid_core.samples import Ragged, Samples
from tasks.engines import Engine, start_engine
from tasks.places import Places, places_of
from tasks.policies import base_and_adapter
from tasks.progress import report

if TYPE_CHECKING:
    from opid_core.learning.losses import Loss

CANARY_PROMPTS = ("Now it's your turn.", "On the table you see nothing. What next?")
SMALLEST_MICRO_BATCH_TOKENS = 64


class RemoteLearner:
    """A `Learner` behind a group: on one rank or several, each of which runs every call."""

    def __init__(
        self,
        config: CampaignConfig,
        places: Places,
        policy_dir: Folder,
        state: Folder | None,
        micro_batch_tokens: int,
        adapter: Folder | None = None,
    ) -> None:
        """Start the ranks with the HF folder `policy_dir` and, where given, the stored learner state and adapter."""
        settings = config.learner.model_copy(update={"micro_batch_tokens": micro_batch_tokens})
        self._group = places.learner(policy_dir, settings, state=state, adapter=adapter)

    def score(self, prompts: Ragged, responses: Ragged, reference: Folder | None = None) -> Ragged:
        """See `Learner.score`."""
        return self._group.call("score", prompts, responses, reference)

    def update(
        self,
        samples: Samples,
        *,
        seed: int,
        learning_rate: float,
        extra_loss: Loss | None,
        on_progress: Callable[[int, int], None],
    ) -> dict[str, float]:
        """See `Learner.update`."""
        options = {"seed": seed, "learning_rate": learning_rate, "extra_loss": extra_loss, "on_progress": on_progress}
        return self._group.call("update", samples, **options)

    def store(self, store: CampaignStore, uri: str) -> FolderRecord:
        """Store the policy at `uri` (such as `policies/000004/<attempt>`): the record of its weights. Its optimizer
        state follows in the background."""
        return self._group.call("store", store, uri)

    def stored(self) -> FolderRecord:
        """Wait for what `store` began: the record of the whole policy."""
        return self._group.call("stored")

    def offload(self) -> None:
        """See `Learner.offload`."""
        self._group.call("offload")

    def reload(self) -> None:
        """See `Learner.reload`."""
        self._group.call("reload")

    def kill(self) -> None:
        """End all ranks."""
        self._group.kill()


class Workers:
    """Engine and learner of a campaign: started when first asked for, brought to the policy asked for, killed after
    any fault (`close`) and at the end of the block that this is the context manager of."""

    def __init__(self, config: CampaignConfig, store: CampaignStore) -> None:
        self._config, self._store = config, store
        self._places = places_of(config)
        self._engine: Engine | None = None
        self._engine_policy: FolderRecord | None = None
        self._learner: RemoteLearner | None = None
        self._learner_policy: FolderRecord | None = None
        self._has_gpus: Literal["engine", "learner"] | None = None
        self.is_storing = False
        """Whether the learner uploads its optimizer state; its end is the end of that."""
        self._reference: tuple[FolderRecord, Folder] | None = None
        """What the learner was given last."""
        self._tokenizer: tuple[FolderRecord, Any] | None = None
        self._halvings = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def tokenizer(self, policy: FolderRecord) -> Any:
        """The policy's tokenizer (transformers)."""
        texts = texts_only(policy)
        if self._tokenizer is None or self._tokenizer[0] != texts:
            tokenizer = load_tokenizer(folder_path(self._store, texts))
            arguments = self._config.prompting.template_arguments
            self._tokenizer = texts, with_template_arguments(tokenizer, arguments)
        return self._tokenizer[1]

    def engine(self, policy: FolderRecord) -> Engine:
        """The engine with the weights of `policy`, each replica checked against the learner. Raises NumericsError on a
        gap."""
        from opid_core.rollout.engines.vllm import canary_gap

        if self._engine is not None and self._engine_policy == weights_only(policy):
            self._give_gpus_to("engine")
            return self._engine
        shares_gpus = self._config.engine.share_gpus
        with self._places.whole_policy(self._store, policy) as folder:
            is_new = self._engine is None
            if is_new and not shares_gpus:
                # The engine takes its share of a GPU's memory at once, and needs it free; a learner grows later. So a
                # learner that is here already, as in a run that is resumed after its rollout, starts again beside it.
                self._close_learner()
            self._give_gpus_to("engine")
            if self._engine is None:
                self._engine = start_engine(self._config, folder, trained=True, places=self._places)
            else:
                self._engine_policy = None
                self._engine.load_policy(folder)
            if not shares_gpus:
                self.learner(policy)  # starts while the engine does
            report(None, "start engine" if is_new else "check engine")
            encode = self.tokenizer(policy).encode
            prompts = [encode(text, add_special_tokens=False) for text in CANARY_PROMPTS]

            def score(prompts: Ragged, responses: Ragged) -> Ragged:
                return self.learner(policy).score(prompts, responses)

            canary_gap(self._engine.replicas, score, prompts, self._config.engine.canary_tolerance)
        self._give_gpus_to("engine")
        self._engine_policy = weights_only(policy)
        return self._engine

    def learner(self, policy: FolderRecord) -> RemoteLearner:
        """The learner with the weights and optimizer state of `policy`."""
        if self._learner is not None and self._learner_policy == policy:
            self._give_gpus_to("learner")
            return self._learner
        self._close_learner()
        self._give_gpus_to("learner")
        report(None, "start learner")
        weights, own = base_and_adapter(self._store, policy)
        base = self._places.folder(self._store, weights)
        adapter = self._places.folder(self._store, own) if own else None
        state = folder_in(adapter or base, STATE_FOLDER) if state_files(policy) else None
        self._learner = RemoteLearner(self._config, self._places, base, state, self.micro_batch_tokens, adapter)
        self._learner_policy = policy
        return self._learner

    def _give_gpus_to(self, who: Literal["engine", "learner"]) -> None:
        """Where both share GPUs (`engine.share_gpus`): let the other leave them, then `who` come back. Who is not there
        is to start after this."""
        if not self._config.engine.share_gpus or self._has_gpus == who:
            return
        self._has_gpus = None  # a fault on the way leaves it open who has moved; both may be told so again
        if who == "engine":
            if self._learner is not None:
                self._learner.offload()
            if self._engine is not None:
                self._engine.wake()
        else:
            if self._engine is not None:
                self._engine.sleep()
            if self._learner is not None:
                self._learner.reload()
        self._has_gpus = who

    def reference_score(self, policy: FolderRecord, reference: FolderRecord) -> Callable[[Ragged, Ragged], Ragged]:
        """The scoring function of the frozen weights of `reference`, in the learner of `policy`."""
        learner = self.learner(policy)
        if self._reference is None or self._reference[0] != reference:  # it stays loaded
            self._reference = reference, self._places.folder(self._store, weights_only(reference))
        return partial(learner.score, reference=self._reference[1])

    @contextmanager
    def updating(self, policy: FolderRecord) -> Iterator[RemoteLearner]:
        """The learner of `policy` for an update: its weights belong to no stored policy until `updated` names one."""
        learner = self.learner(policy)
        self._learner_policy = None
        yield learner

    def updated(self, policy: FolderRecord) -> None:
        """The learner's weights are now stored as `policy`, and its optimizer state is on its way there."""
        self._learner_policy, self.is_storing = policy, True

    def stored(self) -> FolderRecord:
        """The policy of `updated` with its optimizer state, once that is stored. Raises what went wrong with it."""
        assert self._learner is not None
        self._learner_policy, self.is_storing = self._learner.stored(), False
        return self._learner_policy

    @property
    def has_engine(self) -> bool:
        """Whether an engine is there: to start one may end the learner first."""
        return self._engine is not None

    @property
    def micro_batch_tokens(self) -> int:
        """The configured size, halved for every time that memory was too small for it."""
        return max(SMALLEST_MICRO_BATCH_TOKENS, self._config.learner.micro_batch_tokens >> self._halvings)

    def shrink_micro_batches(self) -> None:
        """Halve the micro-batches of the learners made from now on."""
        self._halvings += 1

    def close(self) -> None:
        """Kill every process."""
        self._close_learner()
        self.close_engine()
        self._tokenizer = self._has_gpus = None
        self._places.close()

    def close_engine(self) -> None:
        """Kill the engine alone: the learner may be storing."""
        if self._engine is not None:
            self._engine.kill()
        self._engine = self._engine_policy = None

    def _close_learner(self) -> None:
        if self._learner is not None:
            self._learner.kill()
        self._learner = self._learner_policy = self._reference = None
        self.is_storing = False
