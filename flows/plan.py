"""Before a campaign: check all that can be checked without work, and say what it will take (`--dry-run`)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from envs.base import Environment, PromptParts, result_of
from flows import cost, memory, notify, number_type
from flows.devices import check_devices, describe_engine, device_warnings
from flows.prefect_api import check_api
from flows.reports.chains import mean_metrics, read_chain
from flows.reports.formatting import say
from infra.store import campaign_exists, check_writable, find_campaign, manifests, size_text
from opid_core.architectures import check_sharing
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError, DataError, OpidError
from opid_core.hub import hub_model, policy_folder
from opid_core.learning.methods import OutcomeMethod
from opid_core.policies import load_tokenizer
from opid_core.policy_check import check_policy_folder, load_config
from opid_core.policy_shape import PolicyShape
from opid_core.rollout.prompting import encode, inject, with_template_arguments
from opid_core.skills.analyzers.messages import INSTRUCTIONS
from opid_core.warm_start import require_expert
from tasks import trackers
from tasks.episodes import check_skill_banks, environment_maker, evaluation_settings, training_settings
from tasks.evaluate import panel
from tasks.gates.run import check_user_expectations
from tasks.rollout import sample_tasks

FEW_STATES = 2
"""Of `storage.optimizer_states`, what is proposed where all take too much: the newest, and one to go back to."""


def check(config: CampaignConfig, *, weights: bool = True) -> None:
    """Raise ConfigError or DataError for anything that would stop the campaign later. Touches nothing; a policy of the
    hub is downloaded (without `weights`: its config and tokenizer alone)."""
    check_all_but_space(config, weights=weights)
    check_space([config])


def check_all_but_space(config: CampaignConfig, *, weights: bool = True) -> None:
    """`check`, for a config that is run as several campaigns: ask `check_space` about those."""
    folder = None if config.policy is None else policy_folder(config.policy, weights=weights)
    check_policy_and_engine(folder, weights=weights or (config.policy is not None and hub_model(config.policy) is None))
    if config.learner.shared_prefixes and folder is not None:  # the warm start's own architecture can
        check_sharing(load_config(folder))
    if config.learner.lora is not None:
        from opid_core.learning.lora import check_targets

        check_targets(config.learner.lora, {one.name for one in memory.policy_shape(config).linear})
    environment = environment_maker(config)()
    check_skill_banks(config)
    if config.policy is None:
        require_expert(environment)
    check_devices(config)
    prompts = _first_prompts(config, environment)
    del environment  # it may hold the only session of a server
    if folder is not None:
        _check_limits(config, folder, prompts)
        first_prompt(config, folder)
    if config.analyzer.asks_model:
        from opid_core.endpoint import check_endpoint

        check_endpoint(config.analyzer.llm)
    trackers.check(config)
    notify.check(config)
    check_user_expectations(config.gates)
    if url := os.environ.get("PREFECT_API_URL"):
        check_api(url)


def _first_prompts(config: CampaignConfig, environment: Environment) -> list[PromptParts]:
    """How an episode that is trained on begins, and one that is evaluated."""
    with key_of_split("environment.train_split"):
        played = [(sample_tasks(config, 0)[0], training_settings(config))]
    for key, split in splits_by_key(config):
        with key_of_split(key):
            played.append((panel(config, largest_panel(config), split)[0], evaluation_settings(config, 1.0)))
    prompts = []
    for task, settings in played:
        observation = result_of(environment.reset(task))
        shown = environment.task_text, [], observation, environment.admissible_actions, settings.history_length
        parts = environment.prompt_parts(*shown)
        if settings.skill_of:
            parts = inject(parts, "episode", settings.skill_of(task), config.prompting)
        prompts.append(parts)
    return prompts


def splits_by_key(config: CampaignConfig) -> list[tuple[str, str]]:
    """The splits that are evaluated, each with the key of the config that names it."""
    first, *more = config.evaluation.splits
    return [("evaluation.split", first), *(("evaluation.more_splits", split) for split in more)]


@contextmanager
def key_of_split(key: str) -> Iterator[None]:
    """An environment that refuses a split does not know which `key` of the config names it: say so."""
    try:
        yield
    except ConfigError as error:
        if str(error).startswith("split: "):
            raise ConfigError(f"{key}: {str(error).removeprefix('split: ')}") from None
        raise


def _check_limits(config: CampaignConfig, folder: Path, prompts: Sequence[PromptParts]) -> None:
    """Raise ConfigError where `rollout` allows more tokens than the model reads, or fewer than `prompts` take."""
    model = load_config(folder).get_text_config()
    rope = getattr(model, "rope_parameters", None) or {}
    limit = None if rope.get("rope_type", "default") != "default" else getattr(model, "max_position_embeddings", None)
    rollout = config.rollout
    if limit is not None and rollout.max_prompt_tokens + rollout.max_response_tokens > limit:
        raise ConfigError(
            f"rollout: max_prompt_tokens {rollout.max_prompt_tokens} and max_response_tokens "
            f"{rollout.max_response_tokens} are more than the {limit} tokens that the model reads "
            f"(max_position_embeddings of {folder}/config.json); set lower ones"
        )
    tokenizer = with_template_arguments(load_tokenizer(folder), config.prompting.template_arguments)
    for parts in prompts:
        try:
            encode(tokenizer, parts, rollout.max_prompt_tokens)
        except DataError as error:
            raise ConfigError(f"rollout.max_prompt_tokens: {error}; set a higher one") from None


def check_space(configs: Sequence[CampaignConfig]) -> None:
    """Raise ConfigError where the root of `configs`, campaigns of one root, has no room for what they will yet store,
    or the temporary folder none for one policy with its optimizer state. Touches nothing."""
    root, endpoint_url = configs[0].root, configs[0].storage.endpoint_url
    check_writable(root, 0, endpoint_url)
    done = [_commits(config) for config in configs]
    stored = [memory.stored(config, done=commits) for config, commits in zip(configs, done, strict=True)]
    needed_mib = sum(of_one.campaign_mib for of_one in stored)
    otherwise = ""
    if any(config.storage.optimizer_states is None for config in configs):
        fewer = [_keeping_few_states(config) for config in configs]
        less_mib = sum(memory.stored(c, done=commits).campaign_mib for c, commits in zip(fewer, done, strict=True))
        if less_mib < needed_mib:
            otherwise = f", or set storage.optimizer_states={FEW_STATES} (null keeps all): "
            otherwise += f"then it needs {size_text(less_mib * 2**20)}"
    check_writable(root, int(needed_mib * 2**20), endpoint_url, otherwise)
    temporary = tempfile.gettempdir()
    staged = max(of_one.temporary_mib for of_one in stored) * 2**20
    free = shutil.disk_usage(temporary).free
    if free < staged:
        raise ConfigError(
            f"{temporary}: {size_text(free)} free, a policy with its optimizer state needs {size_text(staged)} there "
            "before it is stored; set TMPDIR to a folder on a larger disk"
        )


def _keeping_few_states(config: CampaignConfig) -> CampaignConfig:
    states = config.storage.optimizer_states or FEW_STATES
    return config.model_copy(update={"storage": config.storage.model_copy(update={"optimizer_states": states})})


def _commits(config: CampaignConfig) -> int:
    """How many commits the campaign has, the start's included; 0 where there is no campaign yet."""
    where = config.root, config.campaign, config.storage.endpoint_url
    return len(manifests(find_campaign(*where))) if campaign_exists(*where) else 0


def check_policy_and_engine(folder: Path | None, trained: bool = True, weights: bool = True) -> None:
    """Raise ConfigError for an unusable policy folder (None: a warm start will make it) or a missing engine."""
    if folder is not None:
        check_policy_folder(folder, trained, weights)
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError("the engine needs vLLM: pip install 'opid[cpu]' or 'opid[gpu]'")


def first_prompt(config: CampaignConfig, folder: Path | None) -> str:
    """The first prompt of the held-out panel as the policy in `folder` gets it ("": a warm start will make it).

    Raises ConfigError or DataError where it, or an answer to it, would not come through.
    """
    if folder is None:
        return ""
    from opid_core.rollout.engines.vllm import end_tokens
    from opid_core.rollout.prompt_check import check_prompt

    end_tokens(folder)
    tokenizer = with_template_arguments(load_tokenizer(folder), config.prompting.template_arguments)
    with key_of_split("evaluation.split"):
        task = panel(config, 1)[0]
    return check_prompt(tokenizer, environment_maker(config)(), task, config)


def largest_panel(config: CampaignConfig) -> int:
    """Tasks of the largest evaluation of the campaign."""
    return max(config.evaluation.tasks, config.evaluation.final_tasks or 0)


def analyzer_cost(config: CampaignConfig) -> str:
    """What the analyzer takes at most when each reply is usable at once; a token is taken for four characters."""
    analyzer, llm, rollout = config.analyzer, config.analyzer.llm, config.rollout
    if not analyzer.asks_model:
        return f"{analyzer.backend}: no calls to a model"
    calls = rollout.tasks_per_iteration * rollout.group_size
    whole_episode = config.environment.max_steps * (rollout.max_prompt_tokens + rollout.max_response_tokens)
    prompt_tokens = calls * (len(INSTRUCTIONS) // 4 + min(llm.max_prompt_chars // 4, whole_episode))
    completion_tokens = calls * llm.max_tokens
    lines = [f"{analyzer.backend}: {llm.model} at {llm.base_url}"]
    for many, unit in ((1, "an iteration"), (config.iterations, "in all")):
        line = f"at most {many * calls} calls, {many * prompt_tokens / 1e6:.2f}M prompt tokens, "
        line += f"{many * completion_tokens / 1e6:.2f}M completion tokens {unit}"
        if llm.prompt_price is not None and llm.completion_price is not None:
            cost = (prompt_tokens * llm.prompt_price + completion_tokens * llm.completion_price) / 1e6
            line += f", cost {many * cost:.2f}"
        lines.append(line)
    if llm.prompt_price is None or llm.completion_price is None:
        lines.append("cost unknown: set analyzer.llm.prompt_price and completion_price")
    return "\n".join(lines)


def warn(config: CampaignConfig, console: Console) -> None:
    """Print what may be meant, and should be known."""
    for text in (*_warnings(config), *device_warnings(config)):
        console.print(f"Warning: {text}", highlight=False, soft_wrap=True)


def _warnings(config: CampaignConfig) -> Iterator[str]:
    engine, learner = config.engine, config.learner
    if (split := config.environment.train_split) in config.evaluation.splits:
        yield f"evaluation.split: {split!r} is trained on too: success there is no success on held-out tasks."
    if _divides_penalties(config):
        yield (
            f"method.baseline: trajectory with environment.invalid_action_penalty "
            f"{config.environment.invalid_action_penalty:g}: in a group of equal outcomes malformed steps may get "
            "advantages in the hundreds (docs/algorithm.md, section 2); set method.tied_groups=zero, or no penalty."
        )
    if number_type.is_narrow(config):
        section = "engine" if engine.dtype == "bfloat16" else "learner"
        yield (
            f"engine.canary_tolerance {engine.canary_tolerance:g} with {section}.dtype bfloat16, which needs about "
            "0.1: the first comparison of engine and learner would stop the run."
        )
    if 0 < config.iterations < learner.warmup_iterations:
        highest = learner.learning_rate_in(config.iterations)
        yield (
            f"learner.warmup_iterations {learner.warmup_iterations} of {config.iterations} iterations: the learning "
            f"rate reaches {highest:.3g}, never {learner.learning_rate:g}."
        )


def _divides_penalties(config: CampaignConfig) -> bool:
    """Whether the penalties of a group of equal outcomes are divided by a spread that may be near 0."""
    method = config.method
    return (
        isinstance(method, OutcomeMethod)
        and (method.baseline, method.tied_groups) == ("trajectory", "keep")
        and method.normalize != "mean"
        and config.environment.invalid_action_penalty > 0
    )


def problem(check: Callable[[], None]) -> OpidError | None:
    """What `check` raises of OPID's own errors."""
    try:
        check()
    except OpidError as error:
        return error
    return None


def so_far(configs: Sequence[CampaignConfig], shape: PolicyShape, card: cost.Card) -> tuple[dict[str, float], int]:
    """Factors of the cost model from those of the campaigns that have run, and how many these are."""
    runs = []
    for config in configs:
        try:
            store, chain = read_chain(config.root, config.campaign, config.storage.endpoint_url)
            measured = cost.measured_seconds(mean_metrics(store, chain))
        except OpidError:  # not there; what is wrong with the store `check_space` tells
            continue
        if measured:
            runs.append((measured, cost.estimate(config, shape, card).seconds))
    return cost.calibration(runs), len(runs)


def show(
    config: CampaignConfig, console: Console, card: str | None = None, *, by_auto: bool = False, prompt: bool = True
) -> None:
    """Print the plan: the whole config, the stages, episodes, the estimates for `card` (None: as `cost.card_of`, which
    has `by_auto`) and the first prompt. Raises ConfigError for a card without a data sheet."""
    rollout, evaluation, shape = config.rollout, config.evaluation, memory.planned_shape(config)
    card_name, sheet = cost.card_of(config, card, by_auto=by_auto)
    console.print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), highlight=False)
    episodes = rollout.tasks_per_iteration * rollout.group_size
    samples = episodes * config.environment.max_steps
    table = Table("plan", "", show_header=False)
    policy = config.policy or f"warm start from {config.warm_start.episodes} expert episodes"
    table.add_row("policy", f"{policy}, {shape.parameters / 1e6:.2f}M parameters" if shape else policy)
    table.add_row("iterations", f"{config.iterations}: rollout, extract_skills, route, rescore, update, commit")
    table.add_row("episodes", f"{rollout.tasks_per_iteration} groups x {rollout.group_size} = {episodes} an iteration")
    table.add_row("samples", f"at most {samples} an iteration, mini-batches of {config.learner.mini_batch_samples}")
    panels = f"{evaluation.tasks} tasks every {evaluation.every} iterations" if evaluation.every else "no tasks between"
    splits = ("each of " if len(evaluation.splits) > 1 else "") + ", ".join(evaluation.splits)
    table.add_row("evaluation", f"{panels}, {largest_panel(config)} before and after, from {splits}")
    table.add_row("analyzer", analyzer_cost(config))
    table.add_row("engine", describe_engine(config))
    if shape is None:
        table.add_row("memory, time, store", f"unknown: {memory.WHY_UNKNOWN}")
    else:
        factors, runs = so_far([config], shape, sheet) if card is None else ({}, 0)
        cost_text = cost.describe(config, cost.estimate(config, shape, sheet, factors=factors), card_name)
        table.add_row("memory (estimate)", memory.describe(config, memory.estimate(config, shape)))
        table.add_row("time (estimate)", cost_text + "\ncalibrated on what this campaign has taken so far" * runs)
        stored = memory.stored(config, shape)
        states_kept = config.storage.optimizer_states or "all"
        table.add_row(
            "store (at most)",
            f"{size_text(stored.lasting_mib * 2**20)} an iteration and {size_text(stored.state_mib * 2**20)} of "
            f"optimizer state (kept: {states_kept}), {size_text(stored.campaign_mib * 2**20)} in all",
        )
    console.print(table)
    folder = policy_folder(config.policy, weights=False) if prompt and config.policy is not None else None
    if text := first_prompt(config, folder):
        console.print("The first prompt, as the policy gets it:")
        say(console, text)
    warn(config, console)
    console.print("Dry run: nothing was written.")
