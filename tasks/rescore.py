"""Stage 4: the old policy scores the same responses with and without their skill -> `scores`."""

from __future__ import annotations

from opid_core.learning.rescoring import rescore_samples
from opid_core.samples import Samples
from tasks import workers
from tasks.context import Context, StageResult, merge
from tasks.progress import report
from tasks.stage import environment_maker, load, save, stage, timed


@stage("rescore")
def rescore(context: Context, rolled_out: StageResult, extracted: StageResult, routed: StageResult) -> StageResult:
    """Log-probs of every response (old, under its skill, reference) and the advantages made of them."""
    assert context.iteration != "start"
    report(context.iteration, "rescore")
    tables, config = load(context, rolled_out, extracted, routed), context.config
    metrics: dict[str, float] = {"learner/micro_batch_tokens": workers.micro_batch_tokens(config)}
    with timed(metrics, "seconds/rescore_s"):
        scores, numbers = rescore_samples(
            Samples.from_tables(tables["steps"], tables["trajectories"], tables["routes"]),
            tables["trajectories"],
            tables["skills"],
            prompt_parts=environment_maker(config)().prompt_parts,
            tokenizer=workers.tokenizer(context.store, context.policy),
            score=workers.learner(context).score,
            score_reference=workers.reference_score(context) if config.learner.kl_coefficient > 0 else None,
            config=config,
        )
    return merge(save(context, "scores", scores, tables), StageResult(metrics={**metrics, **numbers}))
