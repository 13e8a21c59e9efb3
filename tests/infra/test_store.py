from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import store as stores
from infra.manifest import (
    START,
    ExpectationResult,
    FolderRecord,
    GateResult,
    Manifest,
    from_bytes,
    iteration_seed,
    new_manifest,
    to_bytes,
)
from infra.objects import create_only, read
from infra.store import (
    CampaignStore,
    check_writable,
    commit,
    find_campaign,
    folder_path,
    manifests,
    new_attempt,
    next_iteration,
    open_campaign,
    put_folder,
    read_table,
    verify,
    write_table,
)
from opid_core import schema
from opid_core.errors import ConfigError, DataError, GateError, InfrastructureError

CONFIG = {"campaign": "demo", "iterations": 3, "seed": 0, "learner": {"learning_rate": 1e-6, "betas": [0.9, 0.999]}}


@pytest.fixture
def store(tmp_path) -> CampaignStore:
    return open_campaign(tmp_path / "runs", "demo", CONFIG)


def scores_table(first: float = -0.5, step: int = 0) -> pa.Table:
    row = {
        "trajectory_id": "a",
        "step": step,
        "old_log_probs": [first, -1.25],
        "skill_log_probs": None,
        "reference_log_probs": [-0.5, -1.0],
        "skill_prompt_ids": None,
        "history_dropped": 0,
        "outcome_advantage": 1.0,
        "skill_advantages": [0.0, 0.0],
        "trained": True,
    }
    return schema.from_rows("scores", [row])


def metrics_table(seconds: float = 1.0, value: float = 0.5) -> pa.Table:
    rows = [("rollout/return", value), ("seconds/rollout_s", seconds)]
    return schema.from_rows("metrics", [{"iteration": 0, "name": n, "value": v} for n, v in rows])


def make_manifest(
    store: CampaignStore,
    tmp_path: Path,
    previous: Manifest | None,
    *,
    weights: bytes = b"weights",
    seconds: float = 1.0,
) -> Manifest:
    """The manifest of the iteration after `previous`, its parts written under an attempt of its own."""
    iteration = START if previous is None else 0 if previous.iteration == START else previous.iteration + 1
    version = 0 if iteration == START else iteration + 1
    attempt = new_attempt()
    local = tmp_path / f"local-{attempt}"
    (local / "optimizer").mkdir(parents=True)
    (local / "model.safetensors").write_bytes(weights)
    (local / "optimizer" / "state.pt").write_bytes(attempt.encode())
    return new_manifest(
        iteration=iteration,
        tables={
            "scores": write_table(store, "scores", iteration, attempt, scores_table()),
            "metrics": write_table(store, "metrics", iteration, attempt, metrics_table(seconds)),
        },
        policy=put_folder(store, local, f"policies/{version:06d}/{attempt}"),
        gates=[GateResult(table="scores", passed=True, expectations=())],
        config_hash="c" * 64,
        code_version="0.1.0",
        seeds={"iteration": 5},
        prefect_run_id=attempt,
        metrics={"rollout/return": 0.5},
        created_at="2026-01-01T00:00:00.000+00:00",
        previous=previous,
    )


def make_chain(store: CampaignStore, tmp_path: Path, length: int) -> list[Manifest]:
    for _ in range(length):
        chain = manifests(store)
        commit(store, make_manifest(store, tmp_path, chain[-1] if chain else None))
    return manifests(store)


def all_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# Campaigns


def test_a_campaign_is_created_once_and_may_be_extended_tracked_and_moved(tmp_path):
    store = open_campaign(tmp_path, "demo", CONFIG)
    assert json.loads((tmp_path / "demo" / "config.json").read_text()) == CONFIG
    changed = {**CONFIG, "iterations": 9, "tracking": {"tensorboard": False}, "root": "elsewhere"}
    assert open_campaign(tmp_path, "demo", changed) == store
    assert stores.read_config(store) == CONFIG
    assert all_files(tmp_path) == ["demo/config.json"]


def test_another_config_is_refused_with_each_difference(tmp_path):
    open_campaign(tmp_path, "demo", CONFIG)
    other = {
        "campaign": "demo",
        "iterations": 4,
        "learner": {"learning_rate": 2e-6, "betas": [0.9, 0.999]},
        "policy": None,
    }
    with pytest.raises(ConfigError) as caught:
        open_campaign(tmp_path, "demo", other)
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == [
        "  learner.learning_rate: stored 1e-06, given 2e-06",
        "  policy: stored (absent), given null",
        "  seed: stored 0, given (absent)",
    ]
    assert lines[0] == f"campaign: 'demo' exists in {tmp_path} with another config:"
    assert lines[-1] == "choose another campaign name, or set the stored values to continue it"
    assert json.loads((tmp_path / "demo" / "config.json").read_text()) == CONFIG


def test_a_damaged_config_is_named(tmp_path):
    open_campaign(tmp_path, "demo", CONFIG)
    path = tmp_path / "demo" / "config.json"
    path.write_text("{")
    with pytest.raises(DataError, match=f"{path}: not valid JSON"):
        open_campaign(tmp_path, "demo", CONFIG)
    path.write_text("[]")
    with pytest.raises(DataError, match=f"{path}: expected a JSON object, got list"):
        open_campaign(tmp_path, "demo", CONFIG)


def test_looking_for_an_unknown_campaign_lists_the_known_ones_and_touches_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"no campaign 'x' in .*; there is no campaign there"):
        find_campaign(tmp_path / "none", "x")
    assert not (tmp_path / "none").exists()
    open_campaign(tmp_path, "two", CONFIG)
    one = open_campaign(tmp_path, "one", CONFIG)
    with pytest.raises(ConfigError, match=r"no campaign 'x' in .*; campaigns there: one, two"):
        find_campaign(tmp_path, "x")
    assert find_campaign(tmp_path, "one") == one


def test_an_unusable_root_is_refused_before_anything_is_made(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ConfigError, match=f"{file} is not a folder"):
        open_campaign(file, "demo", CONFIG)
    with pytest.raises(ConfigError, match=r"MiB free, the campaign needs 1099511627776 MiB"):
        check_writable(tmp_path / "new" / "deep", 2**60)
    assert all_files(tmp_path) == ["file"]
    assert not (tmp_path / "new").exists()
    check_writable(tmp_path / "new" / "deep", 1)


def test_a_root_without_write_permission_is_refused(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    refused = multiprocessing.get_context("fork").Queue()

    def open_unprivileged() -> None:
        if os.geteuid() == 0:  # root may write anywhere
            os.setgid(65534)
            os.setuid(65534)
        try:
            open_campaign(closed, "demo", CONFIG)
        except ConfigError as error:
            refused.put(str(error))

    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == tmp_path.owner() and folder.stat().st_mode & 0o777 == 0o700:
            folder.chmod(0o755)
    process = multiprocessing.get_context("fork").Process(target=open_unprivileged)
    process.start()
    process.join()
    assert refused.get(timeout=10) == f"root: no permission to write in {closed}; choose another root"
    assert list(closed.iterdir()) == []


# Objects


def test_an_object_is_created_once_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "deep" / "object"
    assert create_only(path, b"first")
    assert not create_only(path, b"second")
    assert read(path) == b"first"
    assert all_files(tmp_path) == ["deep/object"]


def test_a_storage_fault_names_the_object(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InfrastructureError, match=r"file/object: cannot be written: "):
        create_only(tmp_path / "file" / "object", b"data")


# Tables and folders


def test_a_table_comes_back_as_written(store):
    record = write_table(store, "scores", 3, "attempt", scores_table())
    assert record.path == "scores/iteration=000003/attempt/part-0.parquet"
    assert (record.rows, record.schema_version) == (1, schema.VERSION)
    assert record.size == (store.folder / record.path).stat().st_size
    back = read_table(store, record)
    assert back.equals(scores_table())
    assert schema.content_hash(back) == record.content_hash == schema.content_hash(scores_table())


def test_columns_are_stored_as_designed(store):
    record = write_table(store, "scores", 0, "attempt", scores_table())
    group = pq.ParquetFile(store.folder / record.path).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    split = {c.path_in_schema.split(".")[0] for c in columns if "BYTE_STREAM_SPLIT" in c.encodings}
    assert split == {"old_log_probs", "skill_log_probs", "reference_log_probs", "skill_advantages"}
    assert not any(c.has_dictionary_page for c in columns if c.path_in_schema.split(".")[0] in split)
    assert {c.compression for c in columns} == {"ZSTD"}


def test_equal_rows_give_equal_bytes_however_they_are_chunked(store):
    halves = [scores_table(step=0), scores_table(step=1)]
    chunked = pa.concat_tables(halves)
    whole = schema.from_rows("scores", chunked.to_pylist())
    sliced = pa.concat_tables([*halves, *halves]).slice(0, 2)
    records = [write_table(store, "scores", 0, f"a{i}", t) for i, t in enumerate((chunked, whole, sliced))]
    assert len({r.sha256 for r in records}) == 1
    assert len({r.content_hash for r in records}) == 1


def test_a_part_is_immutable_but_writing_the_same_again_is_no_fault(store):
    record = write_table(store, "scores", 0, "attempt", scores_table())
    assert write_table(store, "scores", 0, "attempt", scores_table()) == record
    with pytest.raises(DataError, match=r"part-0.parquet: exists with other bytes"):
        write_table(store, "scores", 0, "attempt", scores_table(first=-0.75))
    assert read_table(store, record).equals(scores_table())


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("score", scores_table(), "table 'score': unknown; known tables: steps"),
        ("scores", scores_table().drop_columns(["trained"]), "table scores: expected columns"),
        ("metrics", scores_table(), "table metrics: expected columns"),
        (
            "metrics",
            pa.table({"iteration": pa.array([0]), "name": ["a"], "value": [0.5]}),
            "table metrics, column iteration: expected int32, got int64",
        ),
        (
            "metrics",
            schema.from_rows("metrics", [{"iteration": 0, "name": None, "value": 1.0}]),
            "table metrics, column name: 1 nulls where none are allowed",
        ),
    ],
)
def test_a_table_of_another_form_is_refused(store, name, table, message):
    with pytest.raises(DataError, match=message):
        write_table(store, name, 0, "attempt", table)
    assert all_files(store.folder) == ["config.json"]


def test_a_damaged_cut_missing_or_foreign_table_is_named(store):
    record = write_table(store, "scores", 0, "attempt", scores_table())
    path = store.folder / record.path
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(DataError, match=f"{path}: damaged: sha256 .*, its record says {record.sha256}"):
        read_table(store, record)
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match=f"{path}: {record.size - 1} bytes, its record says {record.size}"):
        read_table(store, record)
    path.unlink()
    with pytest.raises(DataError, match=f"{path}: missing"):
        read_table(store, record)
    newer = record.model_copy(update={"schema_version": schema.VERSION + 1})
    with pytest.raises(
        DataError, match=f"{path}: written with table schema version {schema.VERSION + 1}, this program"
    ):
        read_table(store, newer)


def test_a_folder_is_copied_listed_and_verified(store, tmp_path):
    local = tmp_path / "local"
    (local / "optimizer").mkdir(parents=True)
    (local / "model.safetensors").write_bytes(b"weights")
    (local / "optimizer" / "state.pt").write_bytes(b"")
    record = put_folder(store, local, "policies/000001/attempt")
    assert [(f.path, f.size) for f in record.files] == [
        ("policies/000001/attempt/model.safetensors", 7),
        ("policies/000001/attempt/optimizer/state.pt", 0),
    ]
    # printf weights | sha256sum
    assert record.files[0].sha256 == "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    folder = folder_path(store, record, verify=True)
    assert all_files(folder) == ["model.safetensors", "optimizer/state.pt"]
    assert put_folder(store, local, "policies/000001/attempt") == record
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    assert folder_path(store, record) == folder
    with pytest.raises(DataError, match=r"model.safetensors: damaged"):
        folder_path(store, record, verify=True)
    (folder / "optimizer" / "state.pt").unlink()
    with pytest.raises(DataError, match=r"state.pt: missing"):
        folder_path(store, record)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no files to store"):
        put_folder(store, tmp_path / "empty", "policies/000002/attempt")


# Commits


def test_commits_form_a_chain(store, tmp_path):
    assert (manifests(store), next_iteration([])) == ([], START)
    chain = make_chain(store, tmp_path, 3)
    assert [m.iteration for m in chain] == [START, 0, 1]
    assert [m.policy_version for m in chain] == [0, 1, 2]
    assert next_iteration(chain) == 2
    assert all_files(store.folder / "_commits") == ["000000.json", "000001.json", "start.json"]
    assert chain[0].prev is None
    assert verify(store) == 3 * 4


def test_content_is_blind_to_clocks_attempts_and_runs_but_not_to_data(tmp_path):
    chains = []
    for name, seconds in (("first", 1.0), ("second", 2.0)):
        store = open_campaign(tmp_path / name, "demo", CONFIG)
        for _ in range(3):
            chain = manifests(store)
            commit(store, make_manifest(store, tmp_path, chain[-1] if chain else None, seconds=seconds))
        chains.append(manifests(store))
    first, second = chains
    assert [m.content for m in first] == [m.content for m in second]
    assert len({m.content for m in first}) == 3
    assert all(a.prev != b.prev for a, b in zip(first[1:], second[1:], strict=True))
    other = make_manifest(store, tmp_path, second[-2], weights=b"other")
    assert other.content != second[-1].content


def test_extra_evaluations_and_metrics_do_not_change_the_content(store, tmp_path):
    manifest = make_manifest(store, tmp_path, None)
    tables = {"scores": manifest.tables["scores"]}
    fields = manifest.model_dump(exclude={"prev", "content", "checksum", "policy_version", "gates", "tables", "policy"})
    bare = new_manifest(**fields, tables=tables, policy=manifest.policy, gates=[], previous=None)
    assert bare.content == manifest.content
    assert new_manifest(**fields, tables={}, policy=manifest.policy, gates=[], previous=None).content != bare.content


def test_a_loser_adopts_the_winner(store, tmp_path):
    start = make_chain(store, tmp_path, 1)[0]
    winner, loser = (make_manifest(store, tmp_path, start) for _ in range(2))
    assert commit(store, winner) == (winner, True)
    assert commit(store, loser) == (winner, False)
    assert manifests(store) == [start, winner]


def _commit_at_once(store, manifest, barrier, results) -> None:
    barrier.wait()
    standing, won = commit(store, manifest)
    results.put((won, to_bytes(standing)))


def test_of_racing_processes_exactly_one_wins_and_all_return_its_manifest(store, tmp_path):
    context = multiprocessing.get_context("fork")
    start = make_chain(store, tmp_path, 1)[0]
    racers = [make_manifest(store, tmp_path, start) for _ in range(4)]
    barrier, results = context.Barrier(len(racers)), context.Queue()
    processes = [context.Process(target=_commit_at_once, args=(store, m, barrier, results)) for m in racers]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(won for won, _ in found) == [False, False, False, True]
    assert {data for _, data in found} == {read(store.folder / "_commits" / "000000.json")}
    assert {to_bytes(m) for m in racers} > {found[0][1]}


def test_parts_and_temporary_files_without_a_manifest_do_not_exist_for_readers(store, tmp_path):
    chain = make_chain(store, tmp_path, 1)
    make_manifest(store, tmp_path, chain[-1])  # killed before its commit
    (store.folder / "_commits" / ".000000.json.0123.tmp").write_bytes(b"half a manif")
    assert manifests(store) == chain
    assert next_iteration(manifests(store)) == 0
    assert verify(store) == 4


def test_readers_stop_at_the_first_missing_manifest_and_a_fork_is_refused(store, tmp_path):
    chain = make_chain(store, tmp_path, 3)
    (store.folder / "_commits" / "000000.json").unlink()
    assert manifests(store) == chain[:1]
    assert commit(store, make_manifest(store, tmp_path, chain[0]))[1]
    with pytest.raises(DataError, match=r"000001.json: broken chain: .*, but manifest 0 hashes to "):
        manifests(store)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [('"rollout/return": 0.5', '"rollout/return": 0.9'), ('"passed": true', '"passed": false'), ("{\n", "{\n\n")],
)
@pytest.mark.parametrize("name", ["start.json", "000000.json", "000001.json"])
def test_an_edited_manifest_is_named(store, tmp_path, name, old, new):
    make_chain(store, tmp_path, 3)
    path = store.folder / "_commits" / name
    edit(path, old, new)
    with pytest.raises(DataError, match=f"{path}: the manifest was changed after its commit"):
        manifests(store)


def test_a_manifest_that_is_replaced_or_no_manifest_is_named(store, tmp_path):
    start, first = make_chain(store, tmp_path, 2)
    path = store.folder / "_commits" / "start.json"
    original = path.read_bytes()
    path.write_bytes(to_bytes(make_manifest(store, tmp_path, None)))  # whole, but not the one that was followed
    with pytest.raises(DataError, match=r"000000.json: broken chain: it names "):
        manifests(store)
    path.write_bytes(original)
    edit(path, '"content"', '"contents"')
    with pytest.raises(DataError, match=f"{path}: not a manifest: content: Field required; contents: Extra inputs"):
        manifests(store)
    path.write_bytes(original)
    (store.folder / "_commits" / "000001.json").write_bytes(to_bytes(first))
    with pytest.raises(DataError, match=r"000001.json: broken chain"):
        manifests(store)
    assert from_bytes(original, "start", None) == start


def test_a_manifest_is_committed_only_whole_in_order_and_passed(store, tmp_path):
    start = make_manifest(store, tmp_path, None)
    failed = GateResult(
        table="scores",
        passed=False,
        expectations=(ExpectationResult(expectation="unique", column="step", passed=False),),
    )
    with pytest.raises(GateError, match="iteration start: not committed, the gates of scores failed"):
        commit(store, start.model_copy(update={"gates": {"scores": failed}}))
    first = make_manifest(store, tmp_path, start)
    with pytest.raises(DataError, match="iteration 0: not committed, the iteration before it is not"):
        commit(store, first)
    part = store.folder / start.tables["scores"].path
    data = part.read_bytes()
    part.unlink()
    with pytest.raises(DataError, match=f"{part}: missing"):
        commit(store, start)
    part.write_bytes(data)
    commit(store, make_manifest(store, tmp_path, None))
    with pytest.raises(DataError, match="iteration 0, not committed: broken chain"):
        commit(store, first)
    with pytest.raises(DataError, match="manifest of iteration 0: its predecessor must be start, got 0"):
        new_manifest(
            **first.model_dump(exclude={"prev", "content", "checksum", "policy_version", "gates", "tables", "policy"}),
            tables={},
            policy=FolderRecord(uri="policies/000001/a", files=()),
            gates=[],
            previous=first,
        )
    assert [m.iteration for m in manifests(store)] == [START]


def test_verify_names_the_first_bad_file(store, tmp_path):
    chain = make_chain(store, tmp_path, 2)
    for manifest in chain:
        path = store.folder / manifest.policy.files[0].path
        path.write_bytes(b"Weights")
    with pytest.raises(DataError, match=f"{store.folder / chain[0].policy.files[0].path}: damaged"):
        verify(store)


# Ids and seeds


def test_attempt_ids_are_unique_and_sort_by_time(monkeypatch):
    times = iter([1_700_000_000_123_000_000, 1_700_000_000_124_000_000, 1_700_000_000_124_000_000])
    monkeypatch.setattr(stores.time, "time_ns", lambda: next(times))
    first, second, third = (new_attempt() for _ in range(3))
    assert first.startswith("20231114T221320123-")
    assert first < second
    assert second.startswith("20231114T221320124-")
    assert second != third


def test_the_iteration_seed_is_pinned():
    # printf 7:3:ab | sha256sum -> first 8 bytes, shifted right by one bit
    assert iteration_seed(7, 3, "ab") == 4177858226530625676


@given(st.integers(0, 2**64), st.integers(0, 2**31), st.text(max_size=64))
def test_iteration_seeds_fit_63_bits_and_depend_on_every_part(seed, iteration, content):
    value = iteration_seed(seed, iteration, content)
    assert 0 <= value < 2**63
    assert value == iteration_seed(seed, iteration, content)
    others = {
        iteration_seed(seed + 1, iteration, content),
        iteration_seed(seed, iteration + 1, content),
        iteration_seed(seed, iteration, content + "0"),
    }
    assert value not in others
