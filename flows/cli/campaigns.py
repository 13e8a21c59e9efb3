"""Commands that run or make policies."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

from flows import settings
from flows.cli.common import ConfigPath, Overrides, app, console
from opid_core.config import load_config
from opid_core.errors import ConfigError


@app.command()
def train(
    config_path: ConfigPath,
    overrides: Overrides = [],  # noqa: B006 - typer wants a plain default
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan and its sizes.")] = False,
) -> None:
    """Run the campaign that CONFIG names, or resume it: the same command after any interruption.

    Example: [bold]opid train configs/quickstart.yaml --set iterations=5 --set campaign=short[/]
    """
    config = load_config(config_path, overrides)
    settings.apply(config.root)
    if dry_run:
        from flows import plan

        plan.check(config)
        plan.show(config, console)
        return
    from flows.prefect_api import prefect_api
    from flows.train import opened_patiently, train_campaign

    try:
        opened_patiently(config, console)
        with prefect_api():
            train_campaign(config, console)
    except KeyboardInterrupt:
        console.print("Interrupted. The same command continues where it was.")
        raise typer.Exit(130) from None


@app.command()
def evaluate(
    config_path: ConfigPath,
    policy: Annotated[
        Path | None, typer.Option(help="HF folder to evaluate; default: the campaign's newest policy.")
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
    """Success of a policy on the config's held-out panel, with 95% intervals and per task type. Stores nothing else.

    A model behind an endpoint plays the same tasks with the same seeds; rollout.max_prompt_tokens does not apply to its
    prompts, environment.history_length bounds them. docs/pretrained.md has more.

    Example: [bold]opid evaluate configs/quickstart.yaml --set evaluation.tasks=300 --out evaluated.json[/], or
    [bold]opid evaluate configs/quickstart.yaml --endpoint http://127.0.0.1:8000/v1 --model NAME[/]
    """
    config = load_config(config_path, overrides)
    if endpoint is not None and policy is not None:
        raise ConfigError("--endpoint and --policy: give one of them")
    if (endpoint is None) != (not model):
        raise ConfigError("--endpoint and --model NAME belong together")
    settings.apply(config.root)
    from flows import plan
    from flows.reports.campaign import evaluation_record, show_evaluations

    if out is not None:
        plan.check_new_file(out)
    if endpoint is not None and model:
        from flows.evaluate import endpoint_settings, evaluate_endpoint

        asked = endpoint_settings(config, endpoint, model, api_key_env)
        evaluated = f"{model} at {asked.base_url}"
        console.print(f"Evaluating {evaluated}", markup=False, highlight=False, soft_wrap=True)
        table, answered = evaluate_endpoint(config, asked, console)
        more = {"endpoint": asdict(answered), "engine": None}
    else:
        from flows.evaluate import evaluate_folder, newest_policy

        folder = policy or newest_policy(config)
        plan.check_policy_and_engine(folder, trained=False)
        evaluated, more = str(folder), {}
        console.print(f"Evaluating {folder}")
        table = evaluate_folder(config, folder, console)
    show_evaluations(table, console)
    if out is not None:
        record = {**evaluation_record(config, evaluated, table), **more}
        unfinished = out.with_name(out.name + ".unfinished")
        unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        unfinished.rename(out)
        console.print(f"Written to {out}", soft_wrap=True)


@app.command()
def prepare(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="HF model folder, or GGUF file.")],
    out: Annotated[Path, typer.Option(help="Folder for the policy; must not exist.")],
) -> None:
    """Make a model usable as `policy`: an HF folder whose output layer is not tied to its embeddings.

    Example: [bold]opid prepare models/Qwen2.5-3B-Instruct --out models/Qwen2.5-3B-Instruct-untied[/]
    """
    settings.apply("runs")
    from opid_core.policies import check_policy_folder, prepare_policy

    prepare_policy(model, out)
    check_policy_folder(out)
    console.print(f"Policy written to {out}. Use it with: opid train CONFIG --set policy={out}", soft_wrap=True)


@app.command("warm-start")
def warm_start_command(
    config_path: ConfigPath,
    out: Annotated[Path, typer.Option(help="Folder for the policy; must not exist.")],
    device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Make the tiny policy of CONFIG by imitating the environment's expert, as an HF folder for `policy`.

    Example: [bold]opid warm-start configs/quickstart.yaml --out my_policy[/]
    """
    config = load_config(config_path, overrides)
    settings.apply(config.root)
    from flows.cli.warm_start import make_warm_start

    make_warm_start(config, out, device, console)


@app.command("compare")
def compare_command(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="Configs, one a method.")],
    name: Annotated[str, typer.Option(help="Name of the study: its folder in the store's root.")] = "study",
    seeds: Annotated[int, typer.Option(min=1, help="Campaigns of each method, with seeds from the config's on.")] = 3,
    overrides: Overrides = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and list the campaigns.")] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Only report on what is finished.")] = False,
) -> None:
    """Compare methods: campaigns of each with several seeds from one policy, then tables, paired tests and curves.

    The same command continues after any interruption. Methods may differ in their signal alone; every OPID method gets
    its twin without skill signal.

    Example: [bold]opid compare configs/compare/*.yaml --seeds 3 --name signals[/]
    """
    from flows.study import check, load_study, run_study, show, study_folder

    study = load_study(name, configs, seeds, overrides)
    settings.apply(study_folder(study))
    if not report_only:
        check(study)
        show(study, console)
    if dry_run:
        console.print("Dry run: nothing was written.")
        return
    if not report_only:
        from flows.prefect_api import prefect_api

        with prefect_api():
            run_study(study, console)
    from flows.reports.study import write_comparison

    folder = write_comparison(study)
    console.print(Markdown((folder / "summary.md").read_text(encoding="utf-8")))
    console.print(f"Report: {folder / 'index.html'}", soft_wrap=True)


@app.command("serve")
def serve_command(
    configs: Annotated[
        list[Path] | None, typer.Argument(metavar="[CONFIG]...", help="Configs to deploy, each as train/<campaign>.")
    ] = None,
    cron: Annotated[str | None, typer.Option(help="Schedule of these deployments, in UTC: '0 3 * * *'.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the server on 127.0.0.1.")] = 4200,
    pool: Annotated[str, typer.Option(help="Work pool; machines that share a server need one each.")] = "opid",
    root: Annotated[Path, typer.Option(help="Prefect's files and the logs go to ROOT/.prefect.")] = Path("runs"),
) -> None:
    """Queue and schedule campaigns on this machine, one at a time, and bring back what dies; until Ctrl-C.

    A Prefect server, a worker and two automations; with PREFECT_API_URL set, that server is used. docs/scheduling.md
    has the commands to run, schedule, pause and cancel.

    Example: [bold]opid serve configs/quickstart.yaml[/], then in another terminal
    [bold]prefect deployment run train/quickstart[/]
    """
    settings.apply(root)
    from flows.cli.serve import serve

    serve(configs or [], cron, port, pool, console)
