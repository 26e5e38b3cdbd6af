import asyncio
import gc
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from answers import TASK, Letters, a_trajectory
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.gleu_score import sentence_gleu
from nltk.translate.meteor_score import single_meteor_score
from rapidfuzz import fuzz
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_bleu
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from agentrft.core.errors import ConfigError, GraderError
from agentrft.core.grade import Grade
from agentrft.core.task import Task
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader
from agentrft.graders.text_similarity import MAX_CHARACTERS, METRICS, NoSynonyms

WORDS = st.lists(
    st.sampled_from("the a cat sat on mat, Mat. 3.5 it's end- (no) Ünï 猫 \n &amp;".split()),
    min_size=5,
).map(" ".join)


@dataclass
class Told:
    vectors: list[list[float]]

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return self.vectors


def similarity(metric: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "text_similarity",
        "name": "close",
        "input": "{{sample.output_text}}",
        "reference": "{{item.reference}}",
        "evaluation_metric": metric,
        **more,
    }


def grade(
    metric: str, text: str, reference: str, backends: Backends | None = None, **more: Any
) -> Grade:
    grader = build_grader(
        similarity(metric, **more), backends=backends or Backends(embedder=Letters())
    )
    task = Task(id="task-1", messages=(), row={"reference": reference})
    return asyncio.run(grader.grade(task, a_trajectory(text), None))


def libraries(metric: str, text: str, reference: str) -> float:
    """The number of the library itself, called as its documentation does."""
    tokens = Tokenizer13a()
    words, wanted = tokens(text).split(), tokens(reference).split()
    match metric:
        case "fuzzy_match":
            return fuzz.ratio(text, reference) / 100
        case "bleu":
            return sentence_bleu(text, [reference]).score / 100
        case "gleu":
            return sentence_gleu([wanted], words)
        case "meteor":
            wordnet: Any = NoSynonyms()
            return single_meteor_score(wanted, words, wordnet=wordnet)
        case _:
            kind = metric.replace("_", "").replace("rougel", "rougeL")
            return RougeScorer([kind]).score(reference, text)[kind].fmeasure


@pytest.mark.parametrize(
    ("metric", "text", "reference", "score"),
    [
        ("fuzzy_match", "abcd", "abcd", 1.0),
        ("fuzzy_match", "abxy", "abcd", 0.5),  # 2 of 4 characters on both sides
        ("bleu", "the cat sat on the mat", "the cat sat on the mat", 1.0),
        # 1- to 4-grams: 5/6, 4/5, 3/4 and 2/3; their geometric mean.
        ("bleu", "the cat sat on the rug", "the cat sat on the mat", (1 / 3) ** 0.25),
        ("gleu", "the cat", "the dog", 1 / 3),  # of 3 n-grams on either side, 1 is shared
        ("gleu", "same words here.", "same words here.", 1.0),
        # Two words and the full stop in one chunk: F = 1, penalty 0.5 * (1/3)^3.
        ("meteor", "the cat.", "the cat.", 1 - 0.5 / 27),
        ("meteor", "cats", "cat", 0.5),  # the stem matches; one chunk of one word costs half
        ("meteor", "feline", "cat", 0.0),  # a synonym, which is not looked up
        ("rouge_1", "a b", "b c", 0.5),
        ("rouge_2", "a b c", "x b c", 0.5),
        ("rouge_5", "a b c d e f", "a b c d e", 2 / 3),
        ("rouge_l", "a x c", "a b c", 2 / 3),
        ("rouge_l", "", "a b c", 0.0),
        ("cosine", "aabb", "ab", 1.0),
        ("cosine", "a", "b", 0.0),
        ("cosine", "ab", "a", 0.5**0.5),
        ("cosine", " ", "a", 0.0),
    ],
)
def test_the_score_is_what_one_counts_by_hand(
    metric: str, text: str, reference: str, score: float
) -> None:
    assert grade(metric, text, reference).score == pytest.approx(score)


@pytest.mark.parametrize("metric", METRICS)
@given(text=st.one_of(WORDS, st.text()), reference=WORDS)
@settings(max_examples=40, deadline=None)
def test_the_score_is_the_number_of_the_library(metric: str, text: str, reference: str) -> None:
    assert METRICS[metric](text, f"one two three four five {reference}") == pytest.approx(
        libraries(metric, text, f"one two three four five {reference}"), abs=1e-12
    )


@pytest.mark.parametrize("metric", METRICS)
def test_no_metric_gives_more_than_one_or_less_than_zero(metric: str) -> None:
    reference = "a b c a b c a b c."
    for text in (reference, "", "\ud800", "x" * 500, reference * 20):
        score = grade(metric, text, reference).score
        assert score is not None
        assert 0 <= score <= 1
    assert grade(metric, reference, reference).score == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("metric", "reference", "shown"),
    [
        ("bleu", " \n", "the reference has no words"),
        ("gleu", "", "the reference has no words"),
        ("meteor", "", "the reference has no words"),
        ("rouge_1", "Привет", "has 0 words of a-z and 0-9"),
        ("rouge_l", "!!", "has 0 words of a-z and 0-9"),
        ("rouge_3", "two words", "it needs 3"),
        ("cosine", " ", "the reference is empty"),
    ],
)
def test_a_reference_that_every_output_would_fail_is_the_rows_fault(
    metric: str, reference: str, shown: str
) -> None:
    with pytest.raises(GraderError, match=f"grader 'close', {metric}: .*{shown}"):
        grade(metric, "anything", reference)


def test_a_text_that_is_too_long_is_the_fault_of_whoever_wrote_it() -> None:
    spam = "spam " * MAX_CHARACTERS
    said = grade("rouge_l", spam, "a b")
    assert (said.score, said.failure and said.failure.code) == (0.0, "truncated_observation_error")
    with pytest.raises(GraderError, match="at most 65536 are compared") as caught:
        grade("rouge_l", "a b", spam)
    assert caught.value.code == "truncated_observation_error"


def test_an_output_without_the_path_scores_zero_and_says_why() -> None:
    given = grade("fuzzy_match", "no json", "a", input="{{sample.output_json.city}}")
    assert (given.score, given.failure and given.failure.code) == (0.0, "sample_parse_error")


@pytest.mark.parametrize(
    "vectors", [[[1.0], [1.0, 2.0]], [[0.0], [1.0]], [[float("nan")], [1.0]], [[1e300], [1e300]]]
)
def test_embeddings_that_cannot_be_compared_are_the_models_server_fault(
    vectors: list[list[float]],
) -> None:
    with pytest.raises(GraderError, match="vectors") as caught:
        grade("cosine", "a", "b", Backends(embedder=Told(vectors)))
    assert caught.value.code == "model_grader_server_error"


def test_opposite_embeddings_score_zero() -> None:
    assert grade("cosine", "a", "b", Backends(embedder=Told([[1.0], [-1.0]]))).score == 0.0


def test_cosine_without_an_embedding_model_is_refused_with_what_to_set() -> None:
    with pytest.raises(ConfigError, match="no embedding model.*set `embedding_model`"):
        build_grader(similarity("cosine"))


def test_a_metric_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"grader.evaluation_metric is 'rouge_9'; one of: fuzzy"):
        build_grader(similarity("rouge_9"))


def test_a_threshold_changes_no_score() -> None:
    assert grade("fuzzy_match", "abxy", "abcd", pass_threshold=0.9).score == 0.5


def test_the_tokenizer_keeps_no_texts() -> None:
    METRICS["bleu"]("a b", "a b")
    gc.collect()
    assert Tokenizer13a.__call__.cache_info().currsize == 0


def test_hundreds_of_comparisons_at_once_share_one_thread_and_leave_the_loop_free() -> None:
    grader = build_grader(similarity("rouge_l"))

    async def scenario() -> list[Grade]:
        trajectory = a_trajectory("Paris " * 2000)
        return await asyncio.gather(*(grader.grade(TASK, trajectory, None) for _ in range(500)))

    assert len({grade.score for grade in asyncio.run(scenario())}) == 1
    names = [thread.name for thread in threading.enumerate()]
    assert sum(name.startswith("text-similarity") for name in names) == 1
