"""`opid compare`: several methods with several seeds, as campaigns of one study that start from one policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow
from rich.console import Console
from rich.table import Table

from flows import auto, cost, memory, plan
from flows.campaign import cancelled_by_interrupt, run_campaign
from flows.display import live_progress
from flows.reports.formatting import quantity, say
from flows.train import check_and_open
from flows.warm_start import write_warm_start
from infra.names import is_one_folder
from infra.store import CampaignStore, campaign_exists, find_campaign, local_name, read_config
from opid_core.config import SEEDS, CampaignConfig, build_config, load_rows, parse_overrides
from opid_core.config.loading import on_top, read_config_file
from opid_core.errors import ConfigError, InfrastructureError, LeaseHeld, LeaseLost, OpidError
from opid_core.hashing import config_differences, flat
from opid_core.hub import HubModel, hub_model, named_model, pinned, policy_folder
from opid_core.learning.methods import Gigpo, Grpo, Opid
from opid_core.local_paths import shipped
from tasks.shared_start import adopt_evaluation
from tasks.store import when_reachable

MAY_VARY = ("campaign", "method", "analyzer", "learner.clip_low", "learner.clip_high")
"""Keys in which the methods of a study may differ; all else is shared, or it would be no comparison."""


@dataclass(frozen=True)
class Study:
    """Methods by label (the `campaign` of their files), and the seeds that each is run with."""

    name: str
    methods: dict[str, CampaignConfig]
    seeds: tuple[int, ...]
    baseline: str
    """Label of the method that the others are compared with: the first that learns from outcomes alone, else from
    outcomes and states, else the first."""

    def campaigns(self) -> list[tuple[str, int, CampaignConfig]]:
        """(label, seed, config) of every campaign, seed by seed."""
        return [
            (label, seed, config.model_copy(update={"campaign": f"{label}-seed{seed}", "seed": seed}))
            for seed in self.seeds
            for label, config in self.methods.items()
        ]

    def twin(self, label: str) -> str | None:
        """Label of the method that is the OPID method `label` without its skill signal; None for any other method."""
        config = self.methods[label]
        if not isinstance(config.method, Opid) or _step_weight(config) is not None:
            return None
        return next(name for name, other in self.methods.items() if _is_twin(other, config))


def load_study(
    name: str, paths: Sequence[Path], seeds: int, overrides: Sequence[str] = (), *, tiny: bool = False
) -> Study:
    """The study of the config files `paths`, of which one with `rows` holds several methods and a folder stands for its
    `*.yaml`, with the seeds from each config's `seed` on. `tiny`: as `shrunk` makes each.

    Every OPID method gets its twin without skill signal (both lambdas 0, which is GRPO or, with a step weight, GiGPO)
    unless one of the files is that. The campaigns lie under `<root>/<name>`. Raises ConfigError for a name that is not
    that of one folder, and for files that do not fit together.
    """
    if not is_one_folder(name):
        raise ConfigError(f"--name: {name!r} is no name of a study: it is the name of one folder below the root")
    methods: dict[str, CampaignConfig] = {}
    of: list[Path] = []
    for path in config_files(paths):
        for config in load_rows(path, overrides):
            config = shrunk(config, overrides) if tiny else config
            config = config.model_copy(update={"root": f"{config.root.rstrip('/')}/{name}"})
            if config.campaign in methods:
                raise ConfigError(f"{path}: campaign: {config.campaign!r} is the name of another method of the study")
            methods[config.campaign] = config
            of.append(path)
    first = next(iter(methods.values()))
    for config, path in zip(methods.values(), of, strict=True):
        if differing := config_differences(first.model_dump(mode="json"), config.model_dump(mode="json"), MAY_VARY):
            raise ConfigError(
                f"{path}: {', '.join(differing)}: differs from {of[0]}; the methods of a study may differ in "
                + ", ".join(MAY_VARY)
            )
    for path, (label, config) in zip(of, list(methods.items()), strict=True):
        if isinstance(config.method, Opid) and not any(_is_twin(other, config) for other in methods.values()):
            without = config.method.model_copy(update={"lambda_episode": 0.0, "lambda_step": 0.0})
            twin = f"{label}-lambda0"
            if twin in methods:
                raise ConfigError(
                    f"{path}: campaign: the twin of {label!r} without skill signal would be called {twin!r}, which is "
                    "the name of another method of the study"
                )
            methods[twin] = config.model_copy(update={"campaign": twin, "method": without})
    without_skills = [label for label, config in methods.items() if _step_weight(config) is not None]
    from_outcomes = [label for label in without_skills if _step_weight(methods[label]) == 0]
    if (last := first.seed + seeds - 1) >= SEEDS:
        raise ConfigError(f"{of[0]}: seed: the last of {seeds} seeds would be {last}; it must be less than {SEEDS}")
    return Study(
        name=name,
        methods=methods,
        seeds=tuple(first.seed + n for n in range(seeds)),
        baseline=[*from_outcomes, *without_skills, *methods][0],
    )


def config_files(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, and in place of a folder its `*.yaml` by name. Raises ConfigError for one without."""
    files = []
    for path in map(shipped, paths):
        configs = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        if not configs:
            raise ConfigError(f"{path}: no config in this folder (*.yaml)")
        files += configs
    return files


def with_decisions(study: Study, tell: Callable[[str], None], card: str | None = None) -> Study:
    """The study with what `auto` stands for, the same in all of its campaigns: `auto.choices`."""
    chosen = auto.choices([config for _, _, config in study.campaigns()], tell, card=card)
    methods = {label: auto.with_choices(config, chosen) for label, config in study.methods.items()}
    return replace(study, methods=methods)


def check(study: Study, *, weights: bool = True) -> None:
    """Everything that can be checked before any work, for each method. Raises ConfigError or DataError, and
    InfrastructureError where the store is away. A policy of the hub is downloaded (without `weights`: its config and
    tokenizer alone)."""
    first = next(iter(study.methods.values()))
    root = first.root.removesuffix(f"/{study.name}")
    if campaign_exists(root, study.name, first.storage.endpoint_url):
        raise ConfigError(f"--name: {study.name} is a campaign under {root}; the study needs a folder of its own")
    for config in study.methods.values():
        plan.check_all_but_space(config, weights=weights)
    plan.check_space([config for _, _, config in study.campaigns()])


def show(study: Study, console: Console, card: str | None = None, *, by_auto: bool = False) -> None:
    """Print what the study will run and what it takes, on `card` (None: the one of `cost.card_of`, with `by_auto`).

    Raises ConfigError for a card without a data sheet.
    """
    configs = [config for _, _, config in study.campaigns()]
    first, seeds = configs[0], len(study.seeds)
    card_name, sheet = cost.card_of(first, card, by_auto=by_auto)
    shape = memory.planned_shape(first)
    factors, runs = plan.so_far(configs, shape, sheet) if shape and card is None else ({}, 0)
    costs = {
        label: cost.estimate(config, shape, sheet, factors=factors)
        for label, config in study.methods.items()
        if shape is not None
    }
    numbers = {label: _amounts_of(config, costs.get(label), seeds) for label, config in study.methods.items()}
    table = Table("method", "runs", *AMOUNTS, title=f"study {study.name}")
    for label in study.methods:
        table.add_row(label, str(seeds), *map(_shown, numbers[label]))
    table.add_section()
    totals = [sum(column) for column in zip(*numbers.values(), strict=True)]
    table.add_row("all", str(len(configs)), *map(_shown, totals))
    console.print(table)
    for label, differs in what_differs(study.methods).items():
        console.print(f"{label}: {differs}", highlight=False)
    seeds_shown, policy = ", ".join(map(str, study.seeds)), first.policy or "made by warm start once"
    console.print(
        f"{quantity(len(configs), 'campaign')} of {quantity(first.iterations, 'iteration')} under {first.root}, seeds "
        f"{seeds_shown}, compared "
        f"with {study.baseline}; one policy for all: {policy}.\n"
        "Samples, calls to the analyzer's model and disk are the most that it can be; hours are an estimate, of all "
        f"{cost.cards(first, sheet)} x {card_name} of a campaign together.",
        highlight=False,
    )
    if not costs:
        console.print(f"Hours and disk unknown: {memory.WHY_UNKNOWN}.")
        return
    longest = max(costs, key=lambda label: costs[label].hours)
    cost_text = cost.describe(study.methods[longest], costs[longest], card_name)
    console.print(f"The longest campaign, {longest}: {cost_text}", highlight=False)
    if runs:
        console.print(f"Calibrated on what {quantity(runs, 'campaign')} of the study took so far.")


AMOUNTS = ("episodes", "samples", "calls", "hours", "disk GiB")


def _amounts_of(config: CampaignConfig, cost_of_one: cost.Cost | None, seeds: int) -> list[float]:
    """`AMOUNTS` of a method, over all of its seeds."""
    episodes = config.iterations * config.rollout.tasks_per_iteration * config.rollout.group_size
    counts = [episodes, episodes * config.environment.max_steps, config.iterations * cost.analyzer_calls(config)]
    measures = [cost_of_one.gpu_hours, cost_of_one.disk_mib / 1024] if cost_of_one else []
    return [seeds * number for number in (*counts, *measures)]


def _shown(number: float) -> str:
    """A count whole, a measure with two digits or more."""
    return f"{number:,.2g}" if 0 < number < 10 and isinstance(number, float) else f"{number:,.0f}"


def what_differs(methods: Mapping[str, CampaignConfig]) -> dict[str, str]:
    """In words, by label: the keys of `MAY_VARY` in which a method differs from another one of the study that has the
    key too, and those that not all have where they are not at their default."""
    every = {label: _varied(config, exclude_defaults=False) for label, config in methods.items()}
    differences = {}
    for label, keys in every.items():
        chosen = _varied(methods[label], exclude_defaults=True)
        differing = [
            key
            for key, value in keys.items()
            if any(other.get(key, value) != value for other in every.values())
            or (key in chosen and any(key not in other for other in every.values()))
        ]
        differences[label] = ", ".join(_worded(key, keys[key]) for key in differing)
    return differences


def _varied(config: CampaignConfig, *, exclude_defaults: bool) -> dict[str, Any]:
    """The keys of `MAY_VARY` but the campaign's name, those of the method without their section."""
    dumped = config.model_dump(mode="json", exclude_defaults=exclude_defaults)
    # Defaults are left out of a method, its name included where it is the default's.
    keys = flat({"method": {"name": config.method.name, **dumped.pop("method", {})}, **dumped})
    varied = {key: value for key, value in keys.items() if key.startswith(MAY_VARY[1:])}
    return {key.removeprefix("method."): value for key, value in varied.items()}


def _worded(key: str, value: Any) -> str:
    if key == "name":
        return value
    return f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"


def run_study(study: Study, console: Console) -> None:
    """Run or resume every campaign of the study, one after the other, in a Prefect flow that has its name.

    A campaign that fails in a way that comes again leaves the others theirs, and its error is raised at the end, with
    the names of all that failed. A fault outside the program ends the study at once, as it would meet them all.
    """

    @flow(name="compare", flow_run_name="{name}", persist_result=False)
    def compare(name: str) -> None:  # Prefect stores what a flow is given: neither the configs nor a console
        with cancelled_by_interrupt():
            _run_campaigns(study, console)

    compare(study.name)


def _run_campaigns(study: Study, console: Console) -> None:
    """See `run_study`."""
    policy = shared_policy(study, console)
    first: dict[tuple[int, str | None], CampaignStore] = {}
    failed: dict[str, OpidError] = {}
    for label, seed, config in study.campaigns():
        console.print(f"{study.name}: {label}, seed {seed}", highlight=False)
        config = config.model_copy(update={"policy": policy})
        try:
            check_and_open(config, console)
            when_reachable(config.recovery, partial(share_start, config, first, console), partial(say, console))
            with live_progress(console, config):
                run_campaign(config)
        except (InfrastructureError, LeaseHeld, LeaseLost):
            raise
        except OpidError as error:
            failed[config.campaign] = error
            say(console, f"{config.campaign} failed: {type(error).__name__}: {error}")
    if failed:
        name, error = next(iter(failed.items()))
        raise type(error)(
            f"study {study.name}: not finished: {', '.join(failed)}; the same command tries them again, with "
            f"--report-only it reports on the others. {name}: {error}"
        ) from error


def share_start(config: CampaignConfig, first: dict[tuple[int, str | None], CampaignStore], console: Console) -> None:
    """Give the campaign the evaluation of its start that the `first` one of its seed and skill bank has, or be it."""
    store = find_campaign(config.root, config.campaign, config.storage.endpoint_url)
    other = first.setdefault((config.seed, config.bank_at_test), store)
    assert config.policy is not None
    if other != store and adopt_evaluation(config, store, policy_folder(config.policy), other):
        console.print(f"Its start is that of {other.campaign}, whose evaluation it has.", highlight=False)


def shared_policy(study: Study, console: Console) -> str:
    """The policy that all campaigns start from: the configs' own (one of the hub at the commit that the study began
    with, else that it is at now), or the folder of one made by warm start, once."""
    first = next(iter(study.methods.values()))
    if first.policy is not None:
        model = hub_model(first.policy)
        if model is None:
            return first.policy
        # The hub's main branch may go on while the study runs: its campaigns may not.
        begun_with = None if model.revision else _begun_with(study, model)
        return str(begun_with or pinned(model))
    folder = study_folder(study) / "policy"
    if not folder.exists():
        write_warm_start(first, folder, "cpu", console)
    return str(folder)


def _begun_with(study: Study, model: HubModel) -> HubModel | None:
    """The commit of `model` that the study's first campaign in the store starts from; None where there is none yet."""
    for _, _, config in study.campaigns():
        where = config.root, config.campaign, config.storage.endpoint_url
        if campaign_exists(*where):
            stored = named_model(str(read_config(find_campaign(*where)).get("policy")))
            return stored if stored and stored.revision and stored.name == model.name else None
    return None


def study_folder(study: Study) -> Path:
    """The study's local folder: the store's root, or `runs/<local_name>` for a root on S3."""
    first = next(iter(study.methods.values()))
    if first.root.startswith("s3://"):
        return Path("runs") / local_name(first.root, study.name, first.storage.endpoint_url)
    return Path(first.root.removeprefix("file://"))


def _step_weight(config: CampaignConfig) -> float | None:
    """w of a method that is A_ep + w * A_step, of which GRPO is the case w = 0; None for any other method."""
    method = config.method
    if isinstance(method, Grpo):
        return 0.0
    if isinstance(method, Gigpo) or (isinstance(method, Opid) and method.lambda_episode == method.lambda_step == 0):
        return method.step_weight
    return None


def _is_twin(other: CampaignConfig, config: CampaignConfig) -> bool:
    """Whether `other` is the OPID config `config` without its skill signal: the same A_ep + w * A_step."""
    method = config.method
    if not isinstance(method, Opid) or _step_weight(other) != method.step_weight:
        return False
    numbers = ["baseline", "normalize", "tied_groups"]
    if method.step_weight:
        numbers += ["gamma", "state_similarity"]
    same_numbers = all(getattr(other.method, name) == getattr(method, name) for name in numbers)
    return same_numbers and other.learner == config.learner


# The same methods made small: on a generated world with a tiny policy, for a run on a CPU in minutes -----------------

KEPT_WHEN_TINY = {
    "campaign": None,
    "root": None,
    "seed": None,
    "preset": None,
    "method": None,
    "analyzer": None,
    "environment": ("success_reward", "invalid_action_penalty"),
    "learner": (
        *("epochs", "clip_low", "clip_high", "dual_clip", "kl_coefficient", "entropy_coefficient", "aggregation"),
        "warmup_iterations",
    ),
    "evaluation": ("split", "more_splits", "skill_bank"),
}
"""What a config keeps: these sections whole, or these of their keys."""


def shrunk(config: CampaignConfig, overrides: Sequence[str] = ()) -> CampaignConfig:
    """`config` with the world, the policy and the sizes of `configs/tiny_<environment>.yaml`; what its method learns
    from stays, and how (`KEPT_WHEN_TINY`). `overrides` come on top.

    Raises ConfigError where there is no such file.
    """
    small = shipped(Path(f"configs/tiny_{config.environment.name}.yaml"))
    if not small.is_file():
        known = sorted(path.stem.removeprefix("tiny_") for path in small.parent.glob("tiny_*.yaml"))
        raise ConfigError(f"--tiny: {small} is missing: there is a tiny world for {', '.join(known) or 'none here'}")
    whole = config.model_dump(mode="json")
    from_config = {
        section: whole[section] if keys is None else {key: whole[section][key] for key in keys}
        for section, keys in KEPT_WHEN_TINY.items()
    }
    if config.environment.name == "search_qa":  # its generated questions have no split of Search-R1's names
        from_config["evaluation"] = {"skill_bank": whole["evaluation"]["skill_bank"]}
    return build_config(
        on_top(on_top(read_config_file(small), from_config), parse_overrides(overrides)), f"{small}, --tiny"
    )
