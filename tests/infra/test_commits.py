from __future__ import annotations

import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import objects, tables
from infra.manifest import (
    BrokenExpectation,
    FolderRecord,
    GateResult,
    from_bytes,
    iteration_seed,
    new_manifest,
    to_bytes,
    weights_hash,
)
from infra.objects import delete
from infra.store import (
    CampaignStore,
    commit,
    files_of,
    is_committed,
    location,
    manifests,
    manifests_after,
    new_attempt,
    open_campaign,
    put_object,
    read_object,
    read_table,
    verify,
    weights_only,
)
from opid_core.errors import DataError, GateError
from tests.factories import CONFIG, make_chain, make_manifest, stored_paths
from tests.infra.servers import proxied

# Commits


def test_commits_form_a_chain(store, tmp_path):
    assert manifests(store) == []
    chain = make_chain(store, tmp_path, 3)
    assert [is_committed(store, iteration) for iteration in range(4)] == [True, True, True, False]
    assert [m.iteration for m in chain] == [0, 1, 2]
    assert [m.policy_version for m in chain] == [0, 1, 2]
    assert stored_paths(store, "_commits") == ["_commits/000000.json", "_commits/000001.json", "_commits/000002.json"]
    assert chain[0].prev is None
    assert all(manifests_after(store, chain[:known]) == chain for known in range(4))
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
    fields = manifest.model_dump(
        exclude={"format", "prev", "content", "checksum", "policy_version", "gates", "tables", "policy"}
    )
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
    racers = [make_manifest(store, tmp_path, start) for _ in range(8)]
    barrier, results = context.Barrier(len(racers)), context.Queue()
    processes = [context.Process(target=_commit_at_once, args=(store, m, barrier, results)) for m in racers]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(won for won, _ in found) == [False] * 7 + [True]
    assert {data for _, data in found} == {read_object(store, "_commits/000001.json")}
    assert {to_bytes(m) for m in racers} > {found[0][1]}


def test_parts_and_temporary_files_without_a_manifest_do_not_exist_for_readers(store, tmp_path):
    chain = make_chain(store, tmp_path, 1)
    make_manifest(store, tmp_path, chain[-1])  # killed before its commit
    put_object(store, "_commits/.000001.json.0123.tmp", b"half a manif")
    assert manifests(store) == chain
    assert verify(store) == 4


@pytest.mark.parametrize(("lost", "follows"), [(0, 1), (1, 2), (2, 4)])
def test_a_manifest_that_was_lost_in_the_middle_is_named(store, tmp_path, lost, follows):
    make_chain(store, tmp_path, 5)
    delete([store.address(f"_commits/00000{n}.json") for n in range(lost, follows)])
    message = rf"_commits/00000{lost}\.json: missing, although 00000{follows}\.json follows it; restore it"
    for read in (manifests, verify):
        with pytest.raises(DataError, match=message):
            read(store)


def test_a_lost_newest_manifest_and_names_that_are_no_manifest_s_are_no_gap(store, tmp_path):
    chain = make_chain(store, tmp_path, 3)
    delete([store.address("_commits/000002.json")])
    for name in ("000009.json~", "9.json", "0000009.json", "000009.JSON", "old/000009.json", "report.json"):
        put_object(store, f"_commits/{name}", b"{}")
    assert manifests(store) == chain[:2]


def test_what_is_committed_while_the_chain_is_read_is_no_gap(store, tmp_path, monkeypatch):
    chain = make_chain(store, tmp_path, 2)
    read, made = objects.read, [make_manifest(store, tmp_path, chain[-1])]

    def committing(address, *limits):
        found = read(address, *limits)
        if found is None and made:  # 2 was looked for too early; now there are 2 and 3
            monkeypatch.setattr(objects, "read", read)
            commit(store, made.pop())
            commit(store, make_manifest(store, tmp_path, manifests(store)[-1]))
        return found

    monkeypatch.setattr(objects, "read", committing)
    assert manifests(store)[:2] == chain
    assert len(manifests(store)) == 4


def test_a_fork_is_refused(store, tmp_path):
    chain = make_chain(store, tmp_path, 3)
    delete([store.address("_commits/000001.json")])
    assert commit(store, make_manifest(store, tmp_path, chain[0]))[1]  # by one that had read no more than the start
    with pytest.raises(DataError, match=r"000002.json: .*manifest 1"):
        manifests(store)


def edit(store, path: str, old: str, new: str) -> None:
    text = (read_object(store, path) or b"").decode()
    assert old in text
    put_object(store, path, text.replace(old, new, 1).encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [('"rollout/return": 0.5', '"rollout/return": 0.9'), ('"passed": true', '"passed": false'), ("{\n", "{\n\n")],
)
@pytest.mark.parametrize("name", ["000000.json", "000001.json", "000002.json"])
def test_an_edited_manifest_is_named(store, tmp_path, name, old, new):
    make_chain(store, tmp_path, 3)
    edit(store, f"_commits/{name}", old, new)
    with pytest.raises(
        DataError, match=f"{location(store, '_commits')}/{name}: the manifest was changed after its commit"
    ):
        manifests(store)


@pytest.mark.parametrize(
    ("time", "said"), [("yesterday", "Invalid isoformat"), ("2026-01-01T00:00:00", "without its zone")]
)
def test_a_manifest_without_a_time_is_named(store, tmp_path, time, said):
    make_chain(store, tmp_path, 1)
    edit(store, "_commits/000000.json", "2026-01-01T00:00:00.000+00:00", time)
    with pytest.raises(DataError, match=rf"000000\.json: not a manifest: created_at: .*{said}"):
        manifests(store)


@pytest.mark.parametrize("key", ["seed", "foo.bar"])
def test_a_manifest_with_an_execution_of_other_keys_is_named(store, tmp_path, key):
    make_chain(store, tmp_path, 1)
    edit(store, "_commits/000000.json", '"execution": {}', f'"execution": {{"{key}": 5}}')
    with pytest.raises(
        DataError, match=f"000000.json: not a manifest: execution: .*'{key}': expected keys of threads, "
    ):
        manifests(store)


@pytest.mark.parametrize(("written", "named"), [("", 1), ('  "format": 4,', 4)])
def test_a_manifest_of_another_format_says_so(store, tmp_path, written, named):
    make_chain(store, tmp_path, 1)
    edit(store, "_commits/000000.json", '  "format": 5,', written)
    with pytest.raises(
        DataError, match=rf"000000.json: a manifest of format {named}; this version of OPID reads format 5 alone"
    ):
        manifests(store)


def test_a_manifest_that_is_replaced_or_no_manifest_is_named(store, tmp_path):
    start, first = make_chain(store, tmp_path, 2)
    path = "_commits/000000.json"
    original = read_object(store, path)
    assert original is not None
    put_object(store, path, to_bytes(make_manifest(store, tmp_path, None)))  # whole, but not the one that was followed
    with pytest.raises(DataError, match=r"000001.json: "):
        manifests(store)
    put_object(store, path, original)
    edit(store, path, '"content"', '"contents"')
    with pytest.raises(
        DataError, match=f"{location(store, path)}: not a manifest: content: Field required; contents: Extra inputs"
    ):
        manifests(store)
    put_object(store, path, original)
    put_object(store, "_commits/000002.json", to_bytes(first))
    with pytest.raises(DataError, match=r"000002.json: "):
        manifests(store)
    assert from_bytes(original, "start", None) == start


def test_a_manifest_is_committed_only_whole_in_order_and_passed(store, tmp_path):
    start = make_manifest(store, tmp_path, None)
    failed = GateResult(
        table="scores",
        passed=False,
        broken=(BrokenExpectation(expectation="unique", column="step"),),
    )
    with pytest.raises(GateError, match=r"iteration 0: .*scores"):
        commit(store, start.model_copy(update={"gates": {"scores": failed}}))
    first = make_manifest(store, tmp_path, start)
    with pytest.raises(DataError, match="iteration 1: "):
        commit(store, first)
    part = start.tables["scores"].path
    data = read_object(store, part)
    assert data is not None
    delete([store.address(part)])
    with pytest.raises(DataError, match=f"{location(store, part)}: missing"):
        commit(store, start)
    put_object(store, part, data[:-1])
    with pytest.raises(DataError, match=f"{location(store, part)}: {len(data) - 1} bytes, its record says {len(data)}"):
        commit(store, start)
    assert stored_paths(store, "_commits") == []
    put_object(store, part, data)
    commit(store, make_manifest(store, tmp_path, None))
    with pytest.raises(DataError, match="iteration 1, "):
        commit(store, first)
    with pytest.raises(DataError, match=r"manifest of iteration 1: .*iteration 1"):
        new_manifest(
            **first.model_dump(
                exclude={"format", "prev", "content", "checksum", "policy_version", "gates", "tables", "policy"}
            ),
            tables={},
            policy=FolderRecord(uri="policies/000001/a", files=()),
            gates=[],
            previous=first,
        )
    assert [m.iteration for m in manifests(store)] == [0]


def test_verify_names_the_first_bad_file_and_tells_of_each_good_one_in_order(store, tmp_path):
    chain = make_chain(store, tmp_path, 2)
    records = [record for manifest in chain for record in files_of(manifest)]
    seen = []
    assert verify(store, seen.append) == 8
    assert seen == records
    for record in (records[3], records[6]):
        put_object(store, record.path, b"W" * record.size)
    seen.clear()
    with pytest.raises(DataError, match=f"{location(store, records[3].path)}: damaged"):
        verify(store, seen.append)
    assert seen == records[:3]
    delete([store.address(records[1].path)])
    with pytest.raises(DataError, match=f"{location(store, records[1].path)}: missing"):
        verify(store)


def test_a_long_chain_is_read_whole(store, tmp_path):
    chain = make_chain(store, tmp_path, 1)
    for _ in range(18):  # more than are read at once
        manifest = new_manifest(
            iteration=len(chain),
            **chain[0].model_dump(include={"config_hash", "code_version", "seeds", "prefect_run_id", "created_at"}),
            tables=chain[0].tables,
            policy=chain[0].policy,
            gates=[],
            metrics={},
            previous=chain[-1],
        )
        assert commit(store, manifest)[1]
        chain.append(manifest)
    assert manifests(store) == chain


def test_requests_of_a_commit_do_not_grow_with_the_chain_or_the_policy_s_files(s3_store, s3_server, tmp_path):
    chain = make_chain(s3_store, tmp_path, 3)
    with proxied(s3_server.endpoint_url) as proxy:
        store = CampaignStore(s3_store.root, s3_store.campaign, proxy.url)
        manifest = make_manifest(store, tmp_path, chain[-1])
        assert len(proxy.requests) == 4  # two tables, two files
        proxy.requests.clear()
        commit(store, manifest)
        folder = "/opid/" + store.root.removeprefix("s3://opid/") + "/demo"
        assert sorted(proxy.requests[:3]) == ["GET /opid"] * 3  # a listing for each table and for the policy
        assert proxy.requests[3:] == [f"GET {folder}/_commits/000002.json", f"PUT {folder}/_commits/000003.json"]
        proxy.requests.clear()
        read_table(store, manifest.tables["scores"])
        assert proxy.requests == [f"GET {folder}/{manifest.tables['scores'].path}"]
        proxy.requests.clear()
        assert len(manifests(store)) == 4
        # A listing; then 16 are read at once, of which those that have not begun when the first missing one is seen are
        # never sent.
        assert {"GET /opid", *(f"GET {folder}/_commits/{n:06}.json" for n in range(5))} <= set(proxy.requests)
        assert len(proxy.requests) == len(set(proxy.requests)) <= 17


# Ids and seeds


def test_attempt_ids_are_unique_and_sort_by_time(monkeypatch):
    times = iter([1_700_000_000_123_000_000, 1_700_000_000_124_000_000, 1_700_000_000_124_000_000])
    monkeypatch.setattr(tables.time, "time_ns", lambda: next(times))
    first, second, third = (new_attempt() for _ in range(3))
    assert first.startswith("20231114T221320123-")
    assert first < second
    assert second.startswith("20231114T221320124-")
    assert second != third


def test_the_weights_hash_tells_of_weights_alone(store, tmp_path):
    one, other = (make_manifest(store, tmp_path, None).policy for _ in range(2))
    assert one.uri != other.uri  # and other optimizer states
    assert weights_hash(one) == weights_hash(other) == weights_hash(weights_only(one))
    assert weights_hash(make_manifest(store, tmp_path, None, weights=b"WEIGHTS").policy) != weights_hash(one)


def test_the_iteration_seed_is_pinned():
    # printf 7:3:ab | sha256sum -> first 8 bytes, shifted right by one bit
    assert iteration_seed(7, 3, "ab") == 4177858226530625676


@given(st.integers(0, 2**64), st.integers(0, 2**31), st.text(max_size=64))
def test_iteration_seeds_fit_63_bits_and_depend_on_every_part(seed, iteration, weights):
    value = iteration_seed(seed, iteration, weights)
    assert 0 <= value < 2**63
    assert value == iteration_seed(seed, iteration, weights)
    others = {
        iteration_seed(seed + 1, iteration, weights),
        iteration_seed(seed, iteration + 1, weights),
        iteration_seed(seed, iteration, weights + "0"),
    }
    assert value not in others
