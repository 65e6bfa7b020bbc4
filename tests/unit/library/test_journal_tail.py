"""Following a journal that loses its tail: everything that stands in it is read, in its order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cachewarden.journal_tail import JournalTail
from cachewarden.machine import ReadJournal
from cachewarden.messages import AuditRecord


def record(seq: int, name: str = "") -> AuditRecord:
    return AuditRecord(
        seq=seq, at_ms=0, kind="observed", agent="a", service=None, subject_id=f"{seq}{name}", hash=f"{seq}{name}"
    )


def answer(question: ReadJournal, journal: list[AuditRecord]) -> list[AuditRecord]:
    return [r for r in journal if r.seq > question.after_seq][: question.limit]


def read_on(tail: JournalTail, journal: list[AuditRecord]) -> list[str]:
    """Ask until there is nothing more, and return what was new."""
    new: list[str] = []
    for _ in range(1_000):
        reading = tail.take(answer(tail.question("r"), journal))
        new += [r.subject_id for r in reading.records]
        if not reading.again:
            return new
    raise AssertionError("it never came to the end")


def test_what_was_read_is_not_returned_again():
    tail, journal = JournalTail(), [record(n) for n in range(1, 4)]
    assert read_on(tail, journal) == ["1", "2", "3"]
    assert read_on(tail, journal) == []
    assert read_on(tail, [*journal, record(4)]) == ["4"]


def test_a_journal_of_many_pages_is_read_to_its_end():
    assert len(read_on(JournalTail(), [record(n) for n in range(1, 3_502)])) == 3_501


def test_others_under_the_numbers_of_lost_records_are_read_although_the_journal_has_outgrown_what_was_read():
    tail, journal = JournalTail(), [record(n) for n in range(1, 4)]
    read_on(tail, journal)
    read_on(tail, [*journal, record(4), record(5)])
    assert read_on(tail, [*journal, *(record(n, "b") for n in range(4, 9))]) == ["4b", "5b", "6b", "7b", "8b"]


def test_a_journal_that_is_shorter_than_before_is_noticed_and_what_comes_then_is_read():
    tail, journal = JournalTail(), [record(n) for n in range(1, 4)]
    read_on(tail, journal)
    read_on(tail, [*journal, record(4)])
    lost = tail.take(answer(tail.question("r"), journal))
    assert (lost.again, lost.lost_after) == (True, 3)
    assert read_on(tail, journal) == []
    assert read_on(tail, [*journal, record(4, "b")]) == ["4b"]


def test_a_journal_that_is_gone_altogether_is_read_from_its_beginning():
    tail = JournalTail()
    read_on(tail, [record(1), record(2)])
    assert read_on(tail, []) == []
    assert read_on(tail, [record(1, "b")]) == ["1b"]


def test_an_answer_from_before_is_neither_new_nor_a_loss():
    tail, journal = JournalTail(), [record(n) for n in range(1, 4)]
    read_on(tail, journal)
    old = answer(tail.question("r"), journal)
    read_on(tail, [*journal, record(4), record(5)])
    reading = tail.take(old)
    assert (reading.records, reading.lost_after) == ((), None)
    assert tail.seq == 5


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.booleans()), max_size=40))
def test_whatever_is_lost_and_written_all_that_stands_in_the_end_was_read_in_its_order(turns):
    tail, journal, read = JournalTail(), [], []
    for number, (lost, written, look) in enumerate(turns):
        journal = journal[: max(0, len(journal) - lost)]
        journal += [record(len(journal) + 1 + n, f"-{number}") for n in range(written)]
        if look:
            read += read_on(tail, journal)
    read += read_on(tail, journal)
    last = {name: place for place, name in enumerate(read)}
    places = [last[r.subject_id] for r in journal]
    assert places == sorted(places)
