"""The hash chain: every way to tamper with it is found, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewarden import chain, codec
from cachewarden.chain import ChainVerifier, Checkpoint, ProblemKind
from cachewarden.errors import InvariantViolation
from cachewarden.messages import CONSTITUTIONAL_HASH
from cachewarden.ports import RecordDraft


def draft(number: int = 0, **payload) -> RecordDraft:
    return RecordDraft(
        at_ms=1_700_000_000_000 + number,
        kind="cycle",
        agent="coordinator",
        service=None,
        subject_id=f"s{number}",
        payload={"number": number, "ratio": 0.1 + number, "nested": {"ä": ["x", None, True]}} | payload,
    )


def records(count: int) -> list:
    return chain.seal_all([draft(n) for n in range(count)], 1, chain.GENESIS_HASH)


def checkpoint_of(record) -> Checkpoint:
    return Checkpoint(seq=record.seq, hash=record.hash, at_ms=1)


def kinds(report) -> set[str]:
    return {p.kind for p in report.problems}


def rechained(changed: list, start: int) -> list:
    """Compute all hashes anew from record `start` on, as an attacker with write access would."""
    rebuilt = list(changed[: start - 1])
    previous = rebuilt[-1].hash if rebuilt else chain.GENESIS_HASH
    for record in changed[start - 1 :]:
        moved = dataclasses.replace(record, seq=len(rebuilt) + 1, prev_hash=previous)
        rebuilt.append(dataclasses.replace(moved, hash=chain.hash_of(moved)))
        previous = rebuilt[-1].hash
    return rebuilt


@pytest.mark.constitutional
def test_the_genesis_hash_comes_from_the_constitutional_hash():
    import hashlib

    assert hashlib.sha256(f"cachewarden:{CONSTITUTIONAL_HASH}".encode()).hexdigest() == chain.GENESIS_HASH


def test_an_untouched_chain_verifies_up_to_its_head():
    sealed = records(20)
    report = chain.verify(sealed, checkpoint_of(sealed[7]), (20, sealed[-1].hash))
    assert report.ok
    assert (report.height, report.head_hash, report.checked) == (20, sealed[-1].hash, 20)


def test_an_empty_chain_verifies_as_empty():
    report = chain.verify([], expected_head=(0, chain.GENESIS_HASH))
    assert report.ok
    assert (report.height, report.head_hash) == (0, chain.GENESIS_HASH)


def test_a_sealed_record_equals_the_one_read_back_from_its_text():
    sealed = chain.seal(draft(3, when=(1, 2), keys={1: "a"}), 1, chain.GENESIS_HASH)
    assert chain.parse_record(codec.canonical_json(sealed).decode(), 1) == sealed


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), "\ud800"])
def test_a_payload_that_json_cannot_hold_is_our_bug(value):
    with pytest.raises(InvariantViolation, match="cannot be written as JSON"):
        chain.seal(draft(value=value), 1, chain.GENESIS_HASH)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seq", 99),
        ("at_ms", 1),
        ("kind", "paused"),
        ("agent", "x"),
        ("service", "shop"),
        ("subject_id", "y"),
        ("payload", {}),
        ("prev_hash", "0" * 64),
        ("hash", "0" * 64),
        ("constitutional_hash", "beef"),
        ("schema_version", 7),
    ],
)
@pytest.mark.parametrize("index", [0, 4, 9])
def test_a_change_of_any_field_of_any_record_is_found(field, value, index):
    sealed = records(10)
    sealed[index] = dataclasses.replace(sealed[index], **{field: value})
    assert not chain.verify(sealed).ok


def test_a_record_rewritten_with_a_fitting_hash_is_found_by_the_next_one():
    sealed = records(10)
    forged = dataclasses.replace(sealed[4], subject_id="forged")
    sealed[4] = dataclasses.replace(forged, hash=chain.hash_of(forged))
    report = chain.verify(sealed)
    assert [(p.seq, p.kind) for p in report.problems] == [(6, ProblemKind.EDITED)]


def test_a_tail_computed_anew_is_found_by_a_checkpoint_inside_it_alone():
    sealed = records(10)
    forged = list(sealed)
    forged[4] = dataclasses.replace(forged[4], subject_id="forged")
    forged = rechained(forged, 5)
    assert chain.verify(forged).ok, "without a checkpoint nobody can know"
    assert kinds(chain.verify(forged, checkpoint_of(sealed[7]))) == {ProblemKind.EDITED}


def test_a_missing_record_is_named():
    sealed = records(10)
    report = chain.verify(sealed[:3] + sealed[5:])
    assert [(p.seq, p.kind, p.detail) for p in report.problems] == [(4, "missing", "records 4 to 5 are missing")]


def test_a_cut_off_tail_is_found_with_a_checkpoint_and_only_with_one():
    sealed = records(10)
    assert chain.verify(sealed[:6]).ok
    report = chain.verify(sealed[:6], checkpoint_of(sealed[8]))
    assert [(p.seq, p.kind) for p in report.problems] == [(7, ProblemKind.TRUNCATED)]
    assert kinds(chain.verify(sealed[:6], expected_head=(10, sealed[-1].hash))) == {ProblemKind.TRUNCATED}


def test_swapped_records_are_reordered_not_missing():
    sealed = records(10)
    sealed[3], sealed[5] = sealed[5], sealed[3]
    assert ProblemKind.REORDERED in kinds(chain.verify(sealed))
    assert ProblemKind.MISSING not in kinds(chain.verify(sealed))


def test_a_record_that_comes_twice_is_a_duplicate():
    sealed = records(5)
    report = chain.verify([*sealed[:3], sealed[2], *sealed[3:]])
    assert [(p.seq, p.kind) for p in report.problems] == [(3, ProblemKind.DUPLICATED)]


@pytest.mark.constitutional
def test_a_record_of_another_constitution_is_named_as_such():
    sealed = records(3)
    other = dataclasses.replace(sealed[2], constitutional_hash="beefbeefbeefbeef")
    sealed[2] = dataclasses.replace(other, hash=chain.hash_of(other))
    assert kinds(chain.verify(sealed)) == {ProblemKind.WRONG_CONSTITUTIONAL_HASH}


def test_an_entry_that_cannot_be_read_leaves_a_stand_in_that_fails_the_chain():
    sealed = records(5)
    sealed[2] = chain.parse_record("{broken", 3)
    report = chain.verify(sealed)
    assert [(p.seq, p.kind) for p in report.problems] == [(3, ProblemKind.UNREADABLE)]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.replace(":", ": "),
        lambda t: t[:-1] + ',"unknown":1}',
        lambda t: '{"seq":4,' + t[1:],
        lambda t: t.replace('"seq":4', '"seq":"4"'),
        lambda t: t.replace('"schema_version":1', '"schema_version":2'),
        lambda t: "[]",
        lambda t: "",
        lambda t: "[" * 100_000,
    ],
)
def test_a_text_that_is_not_exactly_what_we_write_is_damaged(change):
    text = codec.canonical_json(records(5)[3]).decode()
    assert chain.parse_record(text, 4).kind != chain.DAMAGED
    assert chain.parse_record(change(text), 4).kind == chain.DAMAGED


def test_a_record_in_the_place_of_another_is_reordered():
    text = codec.canonical_json(records(5)[3]).decode()
    assert chain.parse_record(text, 5).payload["problem"] == ProblemKind.REORDERED


def test_a_resumed_verification_sees_that_its_own_checkpoint_is_gone_or_rewritten():
    sealed = records(10)
    mark = checkpoint_of(sealed[5])

    def resume(rest):
        verifier = ChainVerifier.resuming(mark)
        for record in rest:
            verifier.take(record)
        return verifier.report()

    assert resume(sealed[5:]).ok
    assert kinds(resume([])) == {ProblemKind.TRUNCATED}
    assert not resume(sealed[6:]).ok
    forged = dataclasses.replace(sealed[5], subject_id="forged")
    forged = dataclasses.replace(forged, hash=chain.hash_of(forged))
    assert kinds(resume([forged])) == {ProblemKind.EDITED}


def test_more_problems_than_are_kept_are_still_counted():
    sealed = [dataclasses.replace(r, agent="x") for r in records(3_000)]
    report = chain.verify(sealed)
    assert report.problems_total == 3_000
    assert len(report.problems) == 1_000


TAMPERINGS = st.lists(
    st.tuples(
        st.sampled_from(["edit", "forge", "drop", "swap", "double", "cut", "rechain"]),
        st.integers(0, 11),
        st.integers(0, 11),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(TAMPERINGS)
def test_no_tampering_that_changes_the_chain_gets_past_a_checkpoint_of_its_head(steps):
    original = records(12)
    mark = checkpoint_of(original[-1])
    changed = list(original)
    for how, first, second in steps:
        if not changed:
            break
        a, b = first % len(changed), second % len(changed)
        if how == "edit":
            changed[a] = dataclasses.replace(changed[a], payload={"edited": b})
        elif how == "forge":
            forged = dataclasses.replace(changed[a], payload={"forged": b})
            changed[a] = dataclasses.replace(forged, hash=chain.hash_of(forged))
        elif how == "drop":
            del changed[a]
        elif how == "swap":
            changed[a], changed[b] = changed[b], changed[a]
        elif how == "double":
            changed.insert(b, changed[a])
        elif how == "cut":
            del changed[a:]
        else:
            changed = rechained(changed, a + 1)
    assert chain.verify(changed, mark).ok == (changed == original)


def test_a_checkpoint_is_json_and_back():
    mark = checkpoint_of(records(1)[0])
    assert codec.decode(Checkpoint, json.loads(codec.canonical_json(mark))) == mark


@given(
    kind=st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    agent=st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    service=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    subject_id=st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    at_ms=st.integers(-(10**18), 10**18),
    payload=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text('aé"\\\n'),
        max_size=5,
    ),
)
def test_what_is_sealed_is_written_in_the_canonical_form(kind, agent, service, subject_id, at_ms, payload):
    draft = RecordDraft(at_ms=at_ms, kind=kind, agent=agent, service=service, subject_id=subject_id, payload=payload)
    (sealed,) = chain.seal_texts([draft], 7, "ab" * 32)
    record, text = sealed.record(), sealed.text
    assert record.hash == sealed.hash
    assert text == codec.canonical_json(record).decode()
    without = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "hash"}
    assert record.hash == codec.digest(without) == chain.hash_of(record)
    assert chain.parse_record(text, 7) == record


@given(
    agent=st.text(max_size=8),
    kind=st.sampled_from(["cycle", "request_decided", 'request_"decided', "request_d\\u00e9cided"]),
    payload=st.dictionaries(st.text('kind":,', max_size=6), st.text('hash":"{', max_size=9), max_size=3),
)
def test_skimming_takes_from_a_record_what_parsing_would_take(agent, kind, payload):
    draft = RecordDraft(at_ms=5, kind=kind, agent=agent, service="x", subject_id="s", payload=payload)
    try:
        (sealed,) = chain.seal_texts([draft], 7, "ab" * 32)
    except InvariantViolation:
        return
    skimmed = chain.skim(sealed.text, 7, frozenset(("request_decided", "request_dé")))
    if kind != "request_decided":
        assert skimmed is None
    elif skimmed is not None:
        assert skimmed == chain.bare(sealed.record())
    else:
        # Only a name with quotes or the like is left to the parser.
        assert any(sign in agent for sign in '"\\') or not agent.isprintable()


def test_what_looks_unusual_is_never_skimmed():
    (sealed,) = chain.seal_texts([draft(1)], 1, chain.GENESIS_HASH)
    wanted = frozenset(("cycle",))
    assert chain.skim(sealed.text, 1, wanted) is not None
    assert chain.skim(sealed.text, 1, frozenset()) is None
    for spoiled in (" " + sealed.text, sealed.text.replace('"kind"', '"Kind"'), sealed.text[1:], "", "[]"):
        assert chain.skim(spoiled, 1, wanted) is None
