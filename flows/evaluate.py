"""`opid evaluate`: a policy folder, or a model behind an endpoint, on the panel of a config. Stores nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import pyarrow as pa
from pydantic import ValidationError
from rich.console import Console

from flows.display import live_progress
from flows.plan import key_of_split, splits_by_key
from flows.reports.chains import read_chain
from flows.reports.formatting import say
from infra.store import location
from opid_core.config import CampaignConfig, LlmConfig
from opid_core.endpoint import check_endpoint
from opid_core.errors import ConfigError
from opid_core.hub import policy_folder
from opid_core.policies import load_tokenizer
from opid_core.rollout.engines.endpoint import Answered, EndpointEngine
from opid_core.rollout.prompting import with_template_arguments
from opid_core.seeds import derive
from tasks.engines import start_engine
from tasks.evaluate import panel, play_panel
from tasks.policies import whole_policy


@contextmanager
def policy_to_play(config: CampaignConfig, policy: str | None) -> Iterator[tuple[Path, str]]:
    """The folder of `policy`, or (None) of the newest committed policy of the config's campaign, whole, and where it
    is: an adapter is merged for the time of the block. Its optimizer state is left where it is. Raises ConfigError when
    there is none."""
    if policy is not None:
        folder = policy_folder(policy)
        yield folder, str(folder)
        return
    otherwise = "train it first, or name a policy: --policy FOLDER or ORG/NAME"
    try:
        store, chain = read_chain(config.root, config.campaign, config.storage.endpoint_url)
    except ConfigError as error:
        raise ConfigError(f"{error}; {otherwise}") from None
    if not chain:
        raise ConfigError(f"campaign {config.campaign!r} has no committed policy yet; {otherwise}")
    with whole_policy(store, chain[-1].policy) as folder:
        yield folder, location(store, chain[-1].policy.uri)


def evaluate_folder(config: CampaignConfig, folder: Path, console: Console | None = None) -> pa.Table:
    """Play the panel with the HF folder's policy; returns an `evaluations` table (policy_version 0)."""
    engine = start_engine(config, folder, trained=False)
    try:
        with live_progress(console, first="start engine") if console else nullcontext():
            tokenizer = with_template_arguments(load_tokenizer(folder), config.prompting.template_arguments)
            return play_panel(config, engine, tokenizer, 0, config.evaluation.tasks)
    finally:
        engine.kill()


def endpoint_settings(config: CampaignConfig, url: str, model: str, api_key_env: str) -> LlmConfig:
    """How the model at `url` is asked: time limit, retries and requests at once are those of `analyzer.llm`.

    Raises ConfigError for an address of another form; it is not shown, for it may hold a password.
    """
    changes = {"base_url": url, "model": model, "api_key_env": api_key_env, "structured_output": "off"}
    try:
        return LlmConfig.model_validate({**config.analyzer.llm.model_dump(), **changes})
    except ValidationError:
        raise ConfigError(
            "--endpoint: expected http://HOST/v1 or https://HOST/v1, without user, password or query (the key comes "
            "from an environment variable)"
        ) from None


def evaluate_endpoint(config: CampaignConfig, settings: LlmConfig, console: Console) -> tuple[pa.Table, Answered]:
    """Play the panel with the model behind the endpoint; returns an `evaluations` table (policy_version 0) and what the
    endpoint answered. Before any episode it is asked once at each temperature.
    """
    for key, split in splits_by_key(config):
        with key_of_split(key):
            panel(config, config.evaluation.tasks, split)
    for temperature in config.evaluation.temperatures:
        seed = derive(config.seed, "endpoint")
        check_endpoint(settings, max_tokens=config.rollout.max_response_tokens, temperature=temperature, seed=seed)
    engine = EndpointEngine(settings, on_note=lambda note: say(console, note))
    with closing(engine), live_progress(console, first="evaluate"):
        table = play_panel(config, engine, None, 0, config.evaluation.tasks)
    say(console, _summary(engine.answered))
    return table, engine.answered


def _summary(answered: Answered) -> str:
    """What people should know of the answers besides who won."""
    tokens = f", {answered.prompt_tokens} prompt and {answered.completion_tokens} completion tokens"
    exceptions = {
        "the tokens of {} were not named and count as 0": answered.uncounted,
        "{} were cut at rollout.max_response_tokens": answered.cut,
        "{} were empty": answered.empty,
    }
    counted = tokens if answered.uncounted < answered.responses else ""
    parts = [f"{answered.responses} responses to {answered.requests} requests{counted}"]
    return "; ".join([*parts, *(text.format(count) for text, count in exceptions.items() if count)])
