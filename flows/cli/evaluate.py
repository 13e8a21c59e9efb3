"""`opid evaluate`; `flows.evaluate` plays the panel."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows import settings
from flows.cli.common import ConfigPath, Overrides, app, console
from opid_core.errors import ConfigError


@app.command()
def evaluate(
    config_path: ConfigPath,
    policy: Annotated[
        str | None,
        typer.Option(help="HF folder, or model of the hub, to evaluate; default: the campaign's newest policy."),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Instead of a folder: address of an OpenAI-compatible endpoint, http://HOST/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The endpoint's name of the model.")] = None,
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable with the endpoint's key; a local address needs none.")
    ] = "OPENAI_API_KEY",
    out: Annotated[
        Path | None, typer.Option(help="JSON file for the result with every episode; must not exist.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Success of a policy on the config's held-out panel, with 95% intervals and per task type. Stores nothing but the
    file of --out.

    A model behind an endpoint plays the same tasks with the same seeds; rollout.max_prompt_tokens does not apply to its
    prompts, environment.history_length bounds them. docs/pretrained.md has more.

    Example: [bold]opid evaluate configs/quickstart.yaml --set evaluation.tasks=300 --out evaluated.json[/], or
    [bold]opid evaluate configs/quickstart.yaml --endpoint http://127.0.0.1:8000/v1 --model NAME[/]
    """
    from opid_core.config import load_config

    config = load_config(config_path, overrides)
    if endpoint is not None and policy is not None:
        raise ConfigError("--endpoint and --policy: give one of them")
    if (endpoint is None) != (not model):
        raise ConfigError("--endpoint and --model NAME belong together")
    settings.apply(config.root)
    from flows import auto, plan
    from flows.evaluate import endpoint_settings, evaluate_endpoint, evaluate_folder, policy_to_play
    from flows.output import check_new_file, write_file
    from flows.reports.campaign import evaluation_record, show_evaluations
    from flows.reports.formatting import say

    if out is not None:
        check_new_file(out)
    if endpoint is not None and model:
        llm = endpoint_settings(config, endpoint, model, api_key_env)
        evaluated = f"{model} at {llm.base_url}"
        say(console, f"Evaluating {evaluated}")
        table, answered = evaluate_endpoint(config, llm, console)
        more = {"endpoint": asdict(answered), "engine": None}
    else:
        with policy_to_play(config, policy) as (folder, evaluated):
            plan.check_policy_and_engine(folder, trained=False)
            plan.first_prompt(config, folder)
            more = {}
            config = auto.decided(config, lambda text: say(console, text), folder=folder)
            say(console, f"Evaluating {evaluated}")
            table = evaluate_folder(config, folder, console)
    show_evaluations(table, console)
    if out is not None:
        record = {**evaluation_record(config, evaluated, table), **more}
        write_file(out, json.dumps(record, indent=1) + "\n")
        say(console, f"Written to {out}")
