import pytest

from agentrft.core.errors import DataError
from agentrft.core.task import Demonstration, Message, Task
from agentrft.optimize.splits import prepare


def task(id: str, text: str, family: str = "", system: str = "") -> Task:
    messages = (Message(role="user", content=text),)
    if system:
        messages = (Message(role="system", content=system), *messages)
    return Task(id=id, messages=messages, family=family)


def rows(name: str, count: int, families: int = 0) -> list[Task]:
    return [
        task(
            f"{name}{n}",
            f"{name} wants thing {n}",
            family=f"kind {n % families}" if families else "",
        )
        for n in range(count)
    ]


def test_validation_rows_are_dev_and_train_rows_feedback() -> None:
    prepared = prepare(rows("a", 5), rows("b", 4), rows("c", 3), seed=0)
    splits = prepared.splits
    assert [len(part) for part in (splits.feedback, splits.dev, splits.holdout)] == [5, 4, 3]
    assert prepared.notes == ()


def test_without_validation_rows_train_is_halved_by_family() -> None:
    train = rows("a", 120, families=20)
    splits = prepare(train, [], rows("c", 3), seed=4).splits
    assert not {t.family for t in splits.feedback} & {t.family for t in splits.dev}
    assert len(splits.feedback) == len(splits.dev) == 60
    assert {t.id for t in (*splits.feedback, *splits.dev)} == {t.id for t in train}


def test_few_families_are_divided_by_request() -> None:
    prepared = prepare(rows("a", 60, families=3), [], rows("c", 3), seed=4)
    splits = prepared.splits
    assert len({t.family for t in splits.feedback}) == len({t.family for t in splits.dev}) == 3
    assert len(splits.dev) == 30
    assert "by request" in prepared.notes[0]


def test_a_prompt_that_stands_twice_in_train_stays_on_one_side() -> None:
    train = [*rows("a", 40), *(task(f"again{n}", f"a wants thing {n}") for n in range(40))]
    splits = prepare(train, [], rows("c", 3), seed=1).splits
    dev = {t.messages for t in splits.dev}
    assert not dev & {t.messages for t in splits.feedback}


def test_the_same_seed_divides_alike_and_the_order_of_rows_does_not_matter() -> None:
    train = rows("a", 60)
    first = prepare(train, [], rows("c", 3), seed=1).splits
    again = prepare(train[::-1], [], rows("c", 3), seed=1).splits
    other = prepare(train, [], rows("c", 3), seed=2).splits
    assert {t.id for t in first.dev} == {t.id for t in again.dev} != {t.id for t in other.dev}


def test_a_prompt_in_two_splits_is_refused_with_its_rows() -> None:
    holdout = [*rows("c", 2), task("x", "a  wants thing 1")]
    with pytest.raises(DataError, match="row 3 of holdout .id 'x'. has the prompt of row 2 of tr"):
        prepare(rows("a", 5), rows("b", 4), holdout, seed=0)


def test_an_id_in_two_splits_is_refused() -> None:
    with pytest.raises(DataError, match="has the id of row 1 of train"):
        prepare(rows("a", 5), [task("a0", "something else")], rows("c", 2), seed=0)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="holdout has no rows"):
        prepare(rows("a", 5), [], [], seed=0)


def test_the_same_words_under_another_system_text_are_another_prompt() -> None:
    holdout = [task("x", "a wants thing 1", system="You serve customer 7.")]
    assert prepare(rows("a", 5), rows("b", 4), holdout, seed=0).splits.holdout == tuple(holdout)


def test_near_duplicates_are_told_with_an_example() -> None:
    text = "please send the parcel of order {} to my new address in the old town today"
    train = [task("t1", text.format(17)), *rows("a", 3)]
    holdout = [task("h1", text.format(99)), task("h2", "something else altogether")]
    [note] = prepare(train, rows("b", 3), holdout, seed=0).notes
    assert "1 of 2 rows of holdout" in note
    assert "'h1'" in note
    assert "'t1' of train" in note


def test_demonstrations_of_dev_and_holdout_tasks_are_never_shown() -> None:
    dev, holdout = rows("b", 2), rows("c", 2)

    def shown(id: str, text: str) -> Demonstration:
        said = (Message(role="user", content=text), Message(role="assistant", content="Done."))
        return Demonstration(id=id, messages=said)

    free = shown("free", "a request of nobody")
    of_dev = shown("b1", "by its id")
    of_holdout = shown("other id", "c  wants thing 0")
    prepared = prepare(rows("a", 3), dev, holdout, [free, of_dev, of_holdout], seed=0)
    assert prepared.demonstrations == (free,)
    assert any(note.startswith("2 demonstrations") for note in prepared.notes)
