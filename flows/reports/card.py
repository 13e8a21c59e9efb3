"""A policy's model card: what it is, how it was made and how good it is, from committed manifests alone.

Its head is metadata for the Hugging Face hub. It may be published: of the config it shows what training depends on, and
of local paths their last name.
"""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import yaml

from flows.reports.chains import Evaluated, evaluations_by_split
from flows.reports.formatting import interval, quantity, score_text
from infra.manifest import Manifest, texts_only, to_bytes
from infra.store import CampaignStore, folder_path, location, read_config
from opid_core.errors import DataError
from opid_core.evaluation import panel_name
from opid_core.hashing import MAY_DIFFER
from opid_core.hub import BASE_MODEL, HubModel, named_model
from opid_core.reading import parse_json, read_text
from tasks.markdown import as_code, markdown_table

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

FILE = "README.md"
_LEARNING = ("learning_rate", "epochs", "kl_coefficient", "clip_low", "clip_high")
_SAMPLING = ("tasks_per_iteration", "group_size")

_OPTIONS = ("data", "manifest", "corpus", "questions", "retrieval.encoder")
_PATHS = ("policy", "evaluation.skill_bank", "method.skill_bank", *(f"environment.options.{name}" for name in _OPTIONS))
"""Keys of the config whose values are local paths however they are written, or such words as `generated`."""
_PATH_BEGINS = ("/", "./", "../", "~", "$", "file://")
"""What a path begins with wherever it stands, as in the options of an environment of the user's own."""
_ADDRESS = re.compile("(https?|s3)://")
"""How the address of a server or a store begins: it says where the campaign ran."""


def model_card(store: CampaignStore, chain: Sequence[Manifest], adapter: bool = False) -> str:
    """The card of the policy of the last commit in `chain`, which begins with the campaign's start; `adapter`: of its
    adapter alone."""
    from huggingface_hub import ModelCard, ModelCardData

    config, manifest = _published(read_config(store)), chain[-1]
    if base := _base_model(store, chain[0]):
        config["policy"] = f"{base.name}@{base.revision}"
    ends = [chain[0], manifest] if manifest.iteration else [manifest]
    first, further = evaluations_by_split(store, ends)
    evaluated = [*first, *further]
    environment = config.get("environment", {}).get("name", "")
    results = [
        result
        for one in evaluated
        if one.policy_version == manifest.policy_version and not math.isnan(one.success.micro)
        for result in _results(one, environment)
    ]
    head = ModelCardData(
        base_model=base.name if base else None,
        base_model_relation=("adapter" if adapter else "finetune") if base else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["opid", "agent", "reinforcement-learning", *([environment] if environment else [])],
        model_name=f"{store.campaign}, iteration {manifest.iteration}" if results else None,
        eval_results=results or None,
    )
    policy = "this folder merged into its base model" if adapter else "this folder, or its name on the hub"
    body = _body(store, chain, config, base, evaluated, policy)
    return str(ModelCard(f"---\n{head.to_yaml()}\n---\n\n{body}"))


def _body(
    store: CampaignStore,
    chain: Sequence[Manifest],
    config: Mapping[str, Any],
    base: HubModel | None,
    evaluated: Sequence[Evaluated],
    policy: str,
) -> str:
    manifest = chain[-1]
    reasons = dict.fromkeys(reason for one in chain for reason in one.degraded)
    name = shlex.quote(store.campaign)
    config_text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return "\n".join(
        [
            f"# {as_code(store.campaign)}, iteration {manifest.iteration}",
            "",
            f"A policy that plays {as_code(config.get('environment', {}).get('name', 'unknown'))}, trained with OPID.",
            _skills(config),
            "",
            *markdown_table(["", ""], _facts(manifest, config, base)),
            "",
            *(f"**Degraded:** {as_code(reason)}\n" for reason in reasons),
            f"## Success on the {panel_name(config)}",
            "",
            *_evaluations(evaluated, manifest),
            "",
            "## Make it again, evaluate it",
            "",
            "With the config below as `config.yaml`; the policy is that of iteration "
            f"{manifest.iteration}. `POLICY` is {policy}.",
            "",
            "```bash",
            f"opid train config.yaml --set iterations={manifest.iteration}",
            "opid evaluate config.yaml --policy POLICY",
            "```",
            "",
            "Where the campaign's store is at hand, this runs its last iteration again and compares every hash:",
            "",
            *_fenced(
                "bash",
                f"opid reproduce {name} --iteration {manifest.iteration}"
                if manifest.iteration
                else f"opid verify {name}",
            ),
            "",
            "<details><summary>config.yaml</summary>",
            "",
            *_fenced("yaml", config_text.rstrip("\n")),
            "",
            "</details>",
            "",
        ]
    )


def _facts(manifest: Manifest, config: Mapping[str, Any], base: HubModel | None) -> list[list[str]]:
    method, environment = config.get("method", {}), config.get("environment", {})
    learner, rollout = config.get("learner", {}), config.get("rollout", {})
    of = "a tiny policy of the campaign's own warm start"
    if base:
        of = f"[{base.name}](https://huggingface.co/{base.name}), revision `{base.revision}`"
    elif config.get("policy"):
        of = f"a local folder, {as_code(config['policy'])}"
    return [
        ["base model", of],
        ["campaign, seed", f"{as_code(config.get('campaign'))}, {as_code(config.get('seed'))}"],
        ["iteration", f"{manifest.iteration} (the policy after {quantity(manifest.policy_version, 'update')})"],
        ["method", _numbers(method, [name for name in method if name != "name"], method.get("name", "unknown"))],
        ["learning", _numbers({**learner, **rollout}, (*_LEARNING, *_SAMPLING))],
        ["environment", _numbers(environment, ("train_split", "max_steps"), environment.get("name", "unknown"))],
        ["skills written by", as_code(config.get("analyzer", {}).get("backend", "unknown"))],
        ["config hash", as_code(manifest.config_hash)],
        ["manifest's sha256", f"`{hashlib.sha256(to_bytes(manifest)).hexdigest()}`"],
        ["code version", as_code(manifest.code_version)],
        ["committed", as_code(manifest.created_at)],
    ]


def _skills(config: Mapping[str, Any]) -> str:
    """Whether prompts of evaluations held skills (`CampaignConfig.bank_at_test`)."""
    method = config.get("method", {})
    bank = config.get("evaluation", {}).get("skill_bank") or (
        method.get("skill_bank") if method.get("keep_skill_at_test") else None
    )
    if bank:
        return f"It was evaluated with the skills of {as_code(bank)} in its prompts: without them it is another policy."
    return "Skills are for training alone: the policy runs without."


def _evaluations(evaluated: Sequence[Evaluated], manifest: Manifest) -> list[str]:
    """The policy's own evaluations beside those of the start, one row each."""
    if not any(one.policy_version == manifest.policy_version for one in evaluated):
        return ["This policy was not evaluated in its campaign."]
    scored = any(one.success.score for one in evaluated)
    header = ["policy after", "split", "temperature", "episodes", "success (micro)", "95% interval", "macro"]
    rows = [
        [
            *(
                quantity(one.policy_version, "update"),
                as_code(one.split),
                f"{one.temperature:g}",
                str(one.success.episodes),
            ),
            *(f"{one.success.micro:.1%}", interval(one.success.low, one.success.high), f"{one.success.macro:.1%}"),
            *([score_text(one.success.score)] if scored else []),
        ]
        for one in evaluated
    ]
    return [
        *markdown_table([*header, *(["score (95%)"] if scored else [])], rows),
        "",
        "The intervals (Wilson) are for the draw of tasks, not for that of training runs: this is one run.",
    ]


def _results(one: Evaluated, environment: str) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    success = one.success
    args = {"temperature": round(one.temperature, 4), "episodes": success.episodes}
    at = f"temperature {one.temperature:g}"
    found = [("success_rate", f"success (micro), {at}", success.micro, (success.low, success.high))]
    found += [("success_rate_macro", f"success (macro over task types), {at}", success.macro, None)]
    if success.score is not None:
        found += [("score", f"mean score, {at}", success.score.mean, (success.score.low, success.score.high))]
    return [
        EvalResult(
            task_type="reinforcement-learning",
            dataset_type=environment or "unknown",
            dataset_name=environment or "unknown",
            dataset_split=one.split,
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 4),
            metric_args=args | ({"interval_95": [round(end, 4) for end in ends]} if ends else {}),
        )
        for kind, name, value, ends in found
    ]


def _base_model(store: CampaignStore, start: Manifest) -> HubModel | None:
    """The model of the hub that the campaign began with, as stored with policy 0. Raises DataError for what is none."""
    texts = texts_only(start.policy)
    if BASE_MODEL not in map(texts.name_of, texts.files):
        return None
    try:
        told = parse_json(read_text(folder_path(store, texts) / BASE_MODEL))
        model = named_model(f"{told['name']}@{told['revision']}")
    except (ValueError, TypeError, KeyError):
        model = None
    if model is None:
        raise DataError(
            f"{location(store, texts.uri)}/{BASE_MODEL}: name, revision: expected ORG/NAME and a commit of the hub"
        )
    return model


def _published(value: Any, key: str = "") -> Any:
    """The config, or what it has under `key`, without what says where and how it ran: of a local path no more than its
    last name, of a server's address nothing."""
    if isinstance(value, Mapping):
        inner = {name: f"{key}.{name}" if key else name for name in value}
        return {name: _published(value[name], inner[name]) for name in value if inner[name] not in MAY_DIFFER}
    if isinstance(value, list | tuple):
        return [_published(one, key) for one in value]
    if isinstance(value, str) and _ADDRESS.match(value):
        return "ADDRESS"
    is_path = isinstance(value, str) and (key in _PATHS or value.startswith(_PATH_BEGINS))
    return PurePath(value).name if is_path else value


def _fenced(language: str, text: str) -> list[str]:
    """A block of code that no line of `text` can end: its fence is longer than any run of backticks in it."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    return [f"{fence}{language}", text, fence]


def _numbers(values: Mapping[str, Any], names: Sequence[str], first: str = "") -> str:
    given = [f"{name} {values[name]}" for name in names if isinstance(values.get(name), (bool, int, float, str))]
    return "; ".join(([as_code(first)] if first else []) + [as_code(text) for text in given])
