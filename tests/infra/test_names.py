"""What is stored is not trusted: crafted names, whose hashes are right, are refused, and nothing outside is touched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.cli.export import write_export
from flows.reports.campaign import write_report
from infra import manifest as manifest_module
from infra import stages
from infra.lease import status
from infra.manifest import FileRecord, FolderRecord, Manifest, to_bytes
from infra.names import check_name, path_below
from infra.store import (
    CampaignStore,
    check_objects,
    delete_orphans,
    find_campaign,
    folder_path,
    manifests,
    open_campaign,
    orphans,
    prune_states,
    pruned,
    put_object,
    read_config,
    read_table,
    standing,
    verify,
)
from opid_core.errors import ConfigError, DataError
from opid_core.reading import MAX_BYTES
from tests.factories import CONFIG, all_files, make_chain, make_manifest

FUTURE = -3600.0
"""An age that every object has."""


@pytest.fixture
def local(tmp_path) -> CampaignStore:
    """A campaign on a disk, beside a folder `outside` with a file of the user's."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "thesis.txt").write_text("mine")
    return open_campaign(tmp_path / "runs", "demo", CONFIG)


def folder_of(store: CampaignStore) -> Path:
    return Path(store.root) / store.campaign


def recommit(store: CampaignStore, fields: dict) -> None:
    """Store a crafted manifest of the start, with hashes that fit."""
    crafted = Manifest.model_construct(**fields)
    crafted = crafted.model_copy(update={"checksum": manifest_module._checksum(crafted)})
    put_object(store, f"_commits/{crafted.iteration:06d}.json", to_bytes(crafted))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/..",
        "./a",
        "a//b",
        "a/",
        "a\x1b[2J",
        "a\nb",
        "\ud800",
        "x" * 256,
        "a/" * 600,
    ],
)
def test_a_name_that_leads_elsewhere_is_no_name(tmp_path, name):
    with pytest.raises(ValueError, match="path"):
        check_name(name)
    with pytest.raises(DataError, match="no name of an object"):
        path_below(tmp_path, name)


@given(st.text(max_size=40))
def test_what_is_a_name_stays_below_its_folder(name):
    try:
        path = path_below(Path("/nowhere/store"), name)
    except DataError:
        return
    assert os.path.normpath(path) == str(path)
    assert str(path) == f"/nowhere/store/{name}"


def crafted_records(start: Manifest, path: str) -> list[dict]:
    """The fields of the start's manifest with a table, a weight and an optimizer file that lie at `path`."""
    table = start.tables["scores"].model_copy(update={"path": path})
    weight, state = start.policy.files
    return [
        {"tables": {**start.tables, "scores": table}},
        *(
            {"policy": start.policy.model_copy(update={"files": (*kept, file.model_copy(update={"path": path}))})}
            for kept, file in [((state,), weight), ((weight,), state)]
        ),
    ]


@pytest.mark.parametrize("place", ["absolute", "above", "another folder"])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(local, tmp_path, place):
    start = make_chain(local, tmp_path / "made", 1)[0]
    path = {
        "absolute": str(tmp_path / "outside" / "thesis.txt"),
        "above": f"{start.policy.uri}/optimizer/../../../../../../outside/thesis.txt",
        "another folder": "config.json",
    }[place]
    for change in crafted_records(start, path):
        recommit(local, dict(start) | change)
        before = all_files(tmp_path)
        for use in (manifests, verify, lambda store: orphans(store, FUTURE)):
            with pytest.raises(DataError, match=r"000000\.json: not a manifest"):
                use(local)
        assert all_files(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda start: {"tables": {"../../x": start.tables["scores"]}},  # `opid export` would write ../../x.jsonl
        lambda start: {"tables": {"metrics": start.tables["scores"]}},
        lambda start: {"policy": start.policy.model_copy(update={"uri": "policies"})},
        lambda start: {"policy": start.policy.model_copy(update={"files": start.policy.files[:1] * 2})},
        lambda start: {"tables": {"scores": start.tables["scores"].model_copy(update={"size": 10**30})}},
    ],
    ids=["an unknown table", "another table's part", "all policies as one", "a file twice", "a file without end"],
)
def test_a_manifest_of_things_that_no_store_holds_is_refused(local, tmp_path, change):
    start = make_chain(local, tmp_path / "made", 1)[0]
    recommit(local, dict(start) | change(start))
    with pytest.raises(DataError, match=r"000000\.json: not a manifest"):
        manifests(local)


def test_names_are_checked_where_they_are_used_too(local, tmp_path):
    """Records that nobody parsed: the address itself is refused."""
    outside = tmp_path / "outside" / "thesis.txt"
    record = FileRecord.model_construct(path="../../outside/thesis.txt", size=4, sha256="0", schema_version=None)
    folder = FolderRecord.model_construct(uri="policies/000000/a", files=(record,))
    start = make_chain(local, tmp_path / "made", 1)[0]
    stray = start.model_copy(update={"policy": folder})
    for use in (
        lambda: check_objects(local, [record]),
        lambda: folder_path(local, folder),
        lambda: read_table(local, record.model_copy(update={"schema_version": start.tables["scores"].schema_version})),
        lambda: delete_orphans(local, [record]),  # pyright: ignore[reportArgumentType]
        lambda: put_object(local, record.path, b"theirs"),
        lambda: write_export(local, [stray], tmp_path / "out"),
    ):
        with pytest.raises(DataError, match="no name of an object"):
            use()
    assert outside.read_text() == "mine"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "named",
    [
        "../outside/thesis.txt",
        "steps/iteration=000000/a/part-0.parquet",
        "policies/000000/a/model.safetensors",
        "policies/000001/a/optimizer/state.pt",
        "policies/000000/a/optimizer/../model.safetensors",
    ],
)
def test_a_note_hides_the_loss_of_its_policy_s_optimizer_state_alone(local, tmp_path, named):
    chain = make_chain(local, tmp_path / "made", 1)
    put_object(local, "_pruned/000000.json", json.dumps({"files": [named]}).encode())
    for use in (lambda: standing(local, chain), lambda: verify(local), lambda: orphans(local, FUTURE)):
        with pytest.raises(DataError, match=r"_pruned/000000\.json"):
            use()


@pytest.mark.parametrize("record", [{"reason": "r", "at": "t"}, {"made_from": {}}, {"made_from": {}, "result": []}, []])
def test_a_stage_record_without_its_fields_is_refused(local, record):
    whole = {**record, "checksum": stages._checksum(record)} if isinstance(record, dict) else record
    put_object(local, "_stages/000000/000/rollout.json", json.dumps(whole).encode())
    for use in (lambda: stages.recorded(local, 0, 0, "rollout", {}), lambda: orphans(local, FUTURE)):
        with pytest.raises(DataError, match=r"rollout\.json"):
            use()


@pytest.mark.parametrize("text", ["[" * 100_000, " " * (MAX_BYTES + 1)], ids=["deep", "long"])
@pytest.mark.parametrize(
    ("path", "use"),
    [
        ("config.json", read_config),
        ("_commits/000000.json", manifests),
        ("_pruned/000000.json", pruned),
        ("_stages/000000/000/rollout.json", lambda store: stages.recorded(store, 0, 0, "rollout", {})),
    ],
)
def test_a_record_without_bounds_is_refused_by_name(local, path, use, text):
    put_object(local, path, text.encode())
    with pytest.raises(DataError, match=path):
        use(local)


def test_a_lease_without_bounds_is_an_unknown_process_s_or_refused_by_name(local):
    put_object(local, "_lease/000001.json", b"[" * 100_000)
    (holder, _) = status(local) or pytest.fail("no lease")
    assert holder.name == "an unknown process"
    put_object(local, "_lease/000001.json", b" " * (MAX_BYTES + 1))
    with pytest.raises(DataError, match=r"_lease/000001\.json: longer than"):
        status(local)


# Symbolic links


@pytest.mark.parametrize("name", ["..", ".", "", "../demo", "/etc"])
def test_a_campaign_s_name_is_that_of_one_folder(tmp_path, name):
    for use in (find_campaign, lambda root, name: open_campaign(root, name, CONFIG)):
        with pytest.raises(ConfigError, match="campaign: "):
            use(tmp_path, name)


def linked(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target, target_is_directory=target.is_dir())


@pytest.mark.parametrize("link", ["steps", "steps/iteration=000001", "policies/000000/stray", "metrics/thesis.txt"])
def test_a_sweep_follows_no_link(local, tmp_path, link):
    make_chain(local, tmp_path / "made", 1)
    target = tmp_path / "outside"
    linked(folder_of(local) / link, target / "thesis.txt" if link.endswith(".txt") else target)
    with pytest.raises(DataError, match="a symbolic link"):
        orphans(local, FUTURE)
    assert all_files(target) == ["thesis.txt"]


def test_a_policy_s_folder_that_is_a_link_is_neither_pruned_nor_read(local, tmp_path):
    chain = make_chain(local, tmp_path / "made", 2)
    state = folder_of(local) / chain[0].policy.uri / "optimizer"
    state.rename(tmp_path / "outside" / "optimizer")
    linked(state, tmp_path / "outside" / "optimizer")
    for use in (
        lambda: prune_states(local, chain, keep=1),
        lambda: folder_path(local, chain[0].policy),
        lambda: verify(local),
    ):
        with pytest.raises(DataError, match=f"{state}: a symbolic link"):
            use()
    assert all_files(tmp_path / "outside") == ["optimizer/state.pt", "thesis.txt"]
    assert not (folder_of(local) / "_pruned").exists()


@pytest.mark.parametrize("link", ["_lease", "_lease/000001.json", "config.json", "scores/iteration=000000"])
def test_nothing_is_written_through_a_link(local, tmp_path, link):
    (folder_of(local) / "config.json").unlink()
    linked(folder_of(local) / link, tmp_path / "outside")
    path = link if link.endswith(".json") else f"{link}/new.json"
    with pytest.raises(DataError, match=f"{link}: a symbolic link"):
        put_object(local, path, b"theirs")
    assert all_files(tmp_path / "outside") == ["thesis.txt"]


@pytest.mark.parametrize("link", ["report", "report/summary.md"])
def test_no_report_is_written_through_a_link(local, tmp_path, link):
    make_chain(local, tmp_path / "made", 1)
    linked(folder_of(local) / link, tmp_path / "outside" if link == "report" else tmp_path / "outside" / "thesis.txt")
    with pytest.raises(DataError, match=f"{link}: a symbolic link"):
        write_report(local)
    assert (tmp_path / "outside" / "thesis.txt").read_text() == "mine"
    assert all_files(tmp_path / "outside") == ["thesis.txt"]


def test_root_and_campaign_may_be_links(tmp_path):
    (tmp_path / "disk" / "demo").mkdir(parents=True)
    (tmp_path / "runs").mkdir()
    linked(tmp_path / "runs" / "demo", tmp_path / "disk" / "demo")
    linked(tmp_path / "linked", tmp_path / "runs")
    store = open_campaign(tmp_path / "linked", "demo", CONFIG)
    make_manifest(store, tmp_path / "made", None)
    assert len(orphans(store, FUTURE)) == 4


def test_a_pipe_in_place_of_an_object_ends_in_an_error(local, tmp_path):
    make_chain(local, tmp_path / "made", 1)
    path = folder_of(local) / "_commits" / "000001.json"
    os.mkfifo(path)
    with pytest.raises(DataError, match=f"{path}: no regular file"):
        manifests(local)
