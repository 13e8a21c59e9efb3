"""Stage 4: the old policy scores the same responses with and without their skill -> `scores`."""

from __future__ import annotations

from prefect.assets import materialize

from envs.base import action_words_of
from opid_core.learning.rescoring import rescore_samples
from opid_core.skills.signal import signal_metrics
from tasks.episodes import environment_maker
from tasks.iteration import TASK, asset, stage


@materialize(
    asset("scores"),
    asset_deps=[asset("steps"), asset("skills"), asset("routes"), asset("policy")],
    task_run_name="rescore-{iteration}",
    **TASK,
)
def rescore(campaign: str, iteration: int, attempt: int) -> None:
    """Log-probs of every response (old, under its skill, reference) and the advantages made of them."""
    with stage("rescore", campaign, iteration, attempt) as it:
        if it.is_reused:
            return
        config, workers = it.config, it.workers
        it.metrics["learner/micro_batch_tokens"] = workers.micro_batch_tokens
        with it.timed("seconds/rescore_s"):
            against_reference = config.learner.kl_coefficient > 0
            scores, numbers = rescore_samples(
                it.samples,
                it.table("trajectories"),
                it.table("skills"),
                prompt_parts=environment_maker(config)().prompt_parts,
                tokenizer=workers.tokenizer(it.policy),
                score=workers.learner(it.policy).score,
                score_reference=workers.reference_score(it.policy, it.reference) if against_reference else None,
                config=config,
            )
        it.metrics |= numbers
        it.write("scores", scores)
        tokenizer, words = workers.tokenizer(it.policy), action_words_of(environment_maker(config)())
        it.metrics |= signal_metrics(
            it.samples.beside(scores),
            it.table("skills"),
            words,
            lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        )
