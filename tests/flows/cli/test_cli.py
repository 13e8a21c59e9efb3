"""The command line as the user types it: bad input ends with code 2 and one clear error, and leaves no trace."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
import yaml

from flows.cli import doctor
from flows.cli import main as cli
from flows.cli.common import exit_on_interrupt
from infra.store import open_campaign
from opid_core import warm_start
from opid_core.config import build_config
from opid_core.errors import ConfigError
from tests.factories import make_tiny_policy_folder

REPOSITORY = Path(__file__).resolve().parents[3]
SMALL = {
    "campaign": "small",
    "iterations": 2,
    "threads": 1,
    "environment": {"options": {"generator": {"size": "small", "train": 40, "valid_unseen": 8}}},
    "rollout": {"tasks_per_iteration": 2, "group_size": 3, "max_prompt_tokens": 464, "max_response_tokens": 24},
    "warm_start": {"hidden_size": 64, "heads": 2, "layers": 1},
    "evaluation": {"tasks": 4},
}


@pytest.fixture
def config_path(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "root": str(tmp_path / "runs")}), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    """`settings.apply` sets variables for the process: each test has its own, and they end with it."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ["COLUMNS"] = "200"


def opid(monkeypatch, *arguments: object) -> int:
    """The exit code of `opid ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["opid", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def files_of(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder under `folder` with its bytes."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refused(monkeypatch, capsys, folder: Path, *arguments: object) -> str:
    """The error of a command that must be refused without a trace under `folder`. A dry run may print its plan."""
    before = files_of(folder)
    capsys.readouterr()  # what making the inputs has printed
    code = opid(monkeypatch, *arguments)
    printed = capsys.readouterr()
    assert code == 2, printed
    assert files_of(folder) == before
    assert printed.out == "" or "--dry-run" in arguments
    assert printed.err.count("error:") == 1
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err
    return printed.err.removeprefix("error: ").strip()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.learning_rat=1", "learner.learning_rat: unknown key; did you mean 'learning_rate'?"),
        ("method.name=ppo", "method.name: unknown method 'ppo'; known: grpo, gigpo, rloo"),
        ("method.name=skill_grpo", "method.skill_bank: Field required"),
        ("method={name: skill_grpo, skill_bank: no.json}", "no.json: cannot read the skill bank: No such file"),
        ("evaluation.skill_bank=no.json", "no.json: cannot read the skill bank: No such file"),
        ("iterations=-1", "iterations: Input should be greater than or equal to 0 (got -1)"),
        ("rollout.temperature=0.7", "rollout.temperature: unknown key"),
        ("environment.name=chess", "environment.name: unknown environment 'chess'; known: alfworld"),
        ("environment.train_split=trian", "environment.train_split: unknown split 'trian'"),
        ("evaluation.split=test", "evaluation.split: unknown split 'test'"),
        ("evaluation.more_splits=[test]", "evaluation.more_splits: unknown split 'test'"),
        ("evaluation.tasks=9", "the split 'valid_unseen' has 8 tasks, the panel needs 9"),
        ("rollout.tasks_per_iteration=41", "split 'train' has 40 tasks, rollout.tasks_per_iteration is 41"),
        ("environment.options.data=/no/such/games", "environment.options.data: /no/such/games is no folder"),
        ("policy=/no/such/policy", "policy: there is no folder /no/such/policy; "),
        ("warm_start.heads=3", "warm_start: hidden_size / heads = 64 / 3 must be one of 32, 64"),
        (
            "analyzer={backend: llm, llm: {base_url: 'https://llm.example/v1', api_key_env: NO_KEY}}",
            "NO_KEY is not set",
        ),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_bad_values(monkeypatch, capsys, tmp_path, config_path, override, message, dry_run):
    arguments = ["train", config_path, "--set", override, *(["--dry-run"] if dry_run else [])]
    error = refused(monkeypatch, capsys, tmp_path, *arguments)
    assert message in error
    assert len(error.splitlines()) == 1


def test_bad_files(monkeypatch, capsys, tmp_path):
    assert refused(monkeypatch, capsys, tmp_path, "train", tmp_path / "absent.yaml") == (
        f"{tmp_path}/absent.yaml: cannot read the config: No such file or directory"
    )
    (tmp_path / "broken.yaml").write_text("campaign: [")
    error = refused(monkeypatch, capsys, tmp_path, "train", tmp_path / "broken.yaml")
    assert error.startswith(f"{tmp_path}/broken.yaml: not valid YAML: ")


def test_a_usage_error_has_the_same_code(monkeypatch, capsys):
    for arguments in (["train"], ["trian"], ["train", "--nonsense", "c.yaml"], ["trace"]):
        assert opid(monkeypatch, *arguments) == 2
        assert capsys.readouterr().err.startswith("Usage: ")


def test_a_policy_folder_without_tokenizer(monkeypatch, capsys, tmp_path, config_path):
    policy = make_tiny_policy_folder(tmp_path / "policy")
    (policy / "tokenizer.json").unlink()
    error = refused(monkeypatch, capsys, tmp_path, "train", config_path, "--set", f"policy={policy}")
    assert error.startswith(f"policy: {policy} has no tokenizer")


def test_a_game_folder_without_games(monkeypatch, capsys, tmp_path, config_path):
    (tmp_path / "games").mkdir()
    error = refused(
        monkeypatch, capsys, tmp_path, "train", config_path, "--set", f"environment.options.data={tmp_path}/games"
    )
    assert f"{tmp_path}/games holds neither packs (train.jsonl.xz ...) nor what alfworld-download makes" in error


def test_a_root_that_is_a_file(monkeypatch, capsys, tmp_path, config_path):
    (tmp_path / "file").write_text("text")
    error = refused(monkeypatch, capsys, tmp_path, "train", config_path, "--set", f"root={tmp_path}/file")
    assert error == f"root: {tmp_path}/file is not a folder; choose another root"
    error = refused(monkeypatch, capsys, tmp_path, "train", config_path, "--set", f"root={tmp_path}/file/deeper")
    assert error == f"root: {tmp_path}/file is not a folder; choose another root"
    error = refused(monkeypatch, capsys, tmp_path, "compare", config_path, "--set", f"root={tmp_path}/file")
    assert error == f"root: {tmp_path}/file is not a folder; choose another root"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_root_that_may_not_be_written(monkeypatch, capsys, tmp_path, config_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    error = refused(monkeypatch, capsys, tmp_path, "train", config_path, "--set", f"root={tmp_path}/locked/runs")
    assert error == f"root: no permission to write in {tmp_path}/locked; choose another root"


def test_a_campaign_that_exists_with_another_config(monkeypatch, capsys, tmp_path, config_path):
    stored = build_config({**SMALL, "root": str(tmp_path / "runs")})
    open_campaign(stored.root, stored.campaign, stored.model_dump(mode="json"))
    changes = ("--set", "learner.learning_rate=0.5", "--set", "seed=7", "--set", "iterations=3")
    error = refused(monkeypatch, capsys, tmp_path, "train", config_path, *changes)
    # A campaign may be extended, so the number of iterations is not among the differences.
    assert error.splitlines() == [
        f"campaign: 'small' exists in {tmp_path}/runs with another config:",
        "  learner.learning_rate: stored 1e-06, given 0.5",
        "  seed: stored 0, given 7",
        "choose another campaign name, or set the stored values to continue it",
    ]


def test_an_unhealthy_prefect_server(monkeypatch, capsys, tmp_path, config_path):
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:1/api"  # nothing listens on port 1
    error = refused(monkeypatch, capsys, tmp_path, "train", config_path)
    assert error.startswith("PREFECT_API_URL=http://127.0.0.1:1/api: no healthy Prefect server there")


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_missing_wandb(monkeypatch, capsys, tmp_path, config_path):
    error = refused(monkeypatch, capsys, tmp_path, "train", config_path, "--set", "tracking.wandb_project=mine")
    assert error == "tracking.wandb_project is set but wandb is not installed: pip install 'opid[wandb]'"


def test_evaluate_without_a_policy(monkeypatch, capsys, tmp_path, config_path):
    error = refused(monkeypatch, capsys, tmp_path, "evaluate", config_path)
    assert error.startswith(f"campaign: no campaign 'small' in {tmp_path}/runs; there is no campaign there; ")
    assert error.endswith("train it first, or name a policy: --policy FOLDER or ORG/NAME")
    error = refused(monkeypatch, capsys, tmp_path, "evaluate", config_path, "--policy", tmp_path / "absent")
    assert error.startswith(f"policy: there is no folder {tmp_path}/absent; ")
    assert "null" not in error  # of a config alone


def test_a_warm_start_over_an_existing_folder(monkeypatch, capsys, tmp_path, config_path):
    error = refused(monkeypatch, capsys, tmp_path, "warm-start", config_path, "--out", tmp_path)
    assert error == f"--out: {tmp_path} exists already; name a new folder"


def test_folders_that_cannot_be_made(monkeypatch, capsys, tmp_path, config_path):
    error = refused(monkeypatch, capsys, tmp_path, "init", config_path)
    assert error == f"DIR: {config_path} cannot be made: File exists; name another folder"
    below = config_path / "new"
    error = refused(monkeypatch, capsys, tmp_path, "init", below)
    assert error == f"DIR: {below} cannot be made: Not a directory; name another folder"
    error = refused(monkeypatch, capsys, tmp_path, "warm-start", config_path, "--out", below)
    assert error == f"--out: {below} cannot be made: Not a directory; name another folder"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_warm_start_on_a_device_that_is_not_there(monkeypatch, capsys, tmp_path, config_path):
    arguments = ("warm-start", config_path, "--out", tmp_path / "new", "--device")
    assert refused(monkeypatch, capsys, tmp_path, *arguments, "cuda").startswith("--device: PyTorch finds no GPU")
    assert opid(monkeypatch, *arguments, "warp") == 2
    assert "Invalid value for '--device'" in capsys.readouterr().err


def test_a_warm_start_that_fails_leaves_nothing(monkeypatch, capsys, tmp_path, config_path):
    def fail(config, make_environment, folder, *more) -> None:
        (folder / "tokenizer.json").write_text("{}")
        raise ConfigError("policy: this environment has no expert")

    monkeypatch.setattr(warm_start, "warm_start", fail)
    before = files_of(tmp_path)
    assert opid(monkeypatch, "warm-start", config_path, "--out", tmp_path / "new") == 2
    made = files_of(tmp_path).keys() - before.keys()
    assert {path for path in made if not path.startswith(f"{tmp_path}/runs")} == set()


def test_status_of_an_unknown_campaign_lists_the_known_ones(monkeypatch, capsys, tmp_path):
    root = tmp_path / "runs"
    error = refused(monkeypatch, capsys, tmp_path, "status", "small", "--root", root)
    assert error == f"campaign: no campaign 'small' in {root}; there is no campaign there"
    monkeypatch.setenv("RUNS", str(root))
    assert refused(monkeypatch, capsys, tmp_path, "status", "small", "--root=$RUNS") == error
    mistyped = refused(monkeypatch, capsys, tmp_path, "status", "small", "--root", "s3:/bucket/x")
    assert mistyped.startswith("--root: what begins with s3: must be")
    mistyped = refused(monkeypatch, capsys, tmp_path, "status", "small", "--endpoint-url", "localhost:9000")
    assert mistyped.startswith("--endpoint-url: must begin with http:// or https://")
    for name in ("b", "a"):
        open_campaign(root, name, {"campaign": name})
    error = refused(monkeypatch, capsys, tmp_path, "status", "small", "--root", root)
    assert error == f"campaign: no campaign 'small' in {root}; campaigns there: a, b"


def test_status_before_the_first_commit(monkeypatch, capsys, tmp_path):
    config = build_config({**SMALL, "root": str(tmp_path)})
    open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    assert opid(monkeypatch, "status", "small", "--root", tmp_path) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "0 iterations committed" in printed
    assert "nothing committed yet, not begun" in printed
    assert "No driver has begun yet" in printed


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path, config_path):
    """In a process of its own: only there do libraries see the settings as they are imported. The root exists already,
    so that anything could be written under it."""
    (tmp_path / "runs").mkdir()
    before = files_of(tmp_path)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "train", str(config_path), "--dry-run"],
        cwd=REPOSITORY,
        env={**inherited, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert files_of(tmp_path) == before
    plan = " ".join(done.stdout.split())
    assert "2 groups x 3 = 6 an iteration" in plan
    assert "learning_rate: 1.0e-06" in plan
    assert plan.endswith("Dry run: nothing was written.")


def test_the_plan_of_a_study_whose_model_is_elsewhere(monkeypatch, capsys, tmp_path):
    """The plan, then what is missing as the last line, and a code that is not 0."""
    monkeypatch.chdir(tmp_path)
    study = REPOSITORY / "configs" / "paper" / "table2_alfworld_qwen2.5_3b.yaml"
    model = "policy=models/elsewhere/Qwen2.5-3B-Instruct"
    assert opid(monkeypatch, "compare", study, "--dry-run", "--card", "a100", "--set", model) == 2
    printed = capsys.readouterr()
    assert "12 campaigns of 150 iterations under" in printed.out
    assert "4 x A100" in printed.out
    assert printed.err.startswith("error: policy: there is no folder models/elsewhere/Qwen2.5-3B-Instruct")
    assert files_of(tmp_path) == {}
    error = refused(monkeypatch, capsys, tmp_path, "compare", study, "--dry-run", "--card", "abacus")
    assert error.startswith("--card: no data sheet of 'abacus'; known: H100")
    assert refused(monkeypatch, capsys, tmp_path, "compare", study, "--card", "a100").startswith(
        "--card: only a dry run"
    )
    assert refused(monkeypatch, capsys, tmp_path, "compare", tmp_path).endswith("no config in this folder (*.yaml)")


COMMANDS = typer.main.get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_help_of_every_command_has_an_example_that_parses(monkeypatch, capsys, command):
    assert opid(monkeypatch, command, "--help") == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"Example: opid {command}" in text
    assert "<bool>" not in text  # a flag takes no value
    described = COMMANDS[command].help or ""
    assert not re.search(r"[^\n]\n[^\n]", described)  # the terminal breaks the lines, not the source
    opid_, name, *arguments = shlex.split(described.split("Example: [bold]")[1].split("[/]")[0])
    assert (opid_, name) == ("opid", command)
    COMMANDS[name].make_context(name, arguments)  # raises a usage error for an unknown option or a missing argument


def test_every_command_is_the_module_of_its_name_and_help_lists_it(monkeypatch, capsys):
    modules = {path.stem.replace("_", "-") for path in Path(cli.__file__).parent.glob("*.py")}
    assert modules - COMMANDS.keys() == {"--init--", "--main--", "commands", "common", "main"}
    assert COMMANDS.keys() < modules
    assert opid(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert all(f" {command} " in text for command in COMMANDS)


def test_an_optional_package_that_is_missing_is_neither_ok_nor_a_fault(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "PACKAGES", {"torch": "..."})
    monkeypatch.setattr(doctor, "OPTIONAL", {"numpy": "...", "no_such_package": "pip install no-such-package"})
    assert opid(monkeypatch, "doctor") == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    marks = {row[1]: row[0] for row in rows if len(row) == 3}
    assert (marks["torch"], marks["numpy (optional)"], marks["no_such_package (optional)"]) == ("ok", "ok", "-")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_a_signal_ends_says_how_to_go_on(capsys, number, code):
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    inherited = signal.signal(number, handler)  # a shell's background job ignores SIGINT
    try:
        with pytest.raises(typer.Exit) as ended, exit_on_interrupt():
            signal.raise_signal(number)
        assert signal.getsignal(number) == handler
    finally:
        signal.signal(number, inherited)
    assert ended.value.exit_code == code
    assert capsys.readouterr().out.endswith("The same command continues where it was.\n")


def test_the_help_needs_no_heavy_library():
    heavy = ("deepspeed", "httpx", "matplotlib", "pandas", "prefect", "pyarrow", "torch", "transformers", "vllm")
    code = f"import sys, flows.cli.main; print(*[name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert loaded.stdout == "\n"
