"""How much two texts share, as the libraries that define the metrics count it.

The libraries take most of a second to load and long texts take a while, so all of it runs in a thread.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import mul
from typing import Any, cast

from agentrft.core.errors import GraderError
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.graders.template import AbsentFromOutput, Template, model_fault, sample_of
from agentrft.inference.grader_model import Embedder

MAX_CHARACTERS = 65_536
"""Of each text; the slowest metric takes one second for the worst of them."""

_THREAD = ThreadPoolExecutor(max_workers=1, thread_name_prefix="text-similarity")
"""One, because these metrics hold the interpreter's lock."""


class TooFewWords(Exception):
    """The reference has nothing that this metric counts, so every output would score 0."""


def _fuzzy_match(given: str, reference: str) -> float:
    from rapidfuzz import fuzz

    return fuzz.ratio(given, reference) / 100


def _bleu(given: str, reference: str) -> float:
    from sacrebleu import sentence_bleu

    said, wanted = " ".join(_words(given)), " ".join(_reference_words(reference))
    return sentence_bleu(said, [wanted], tokenize="none").score / 100


def _gleu(given: str, reference: str) -> float:
    from nltk.translate.gleu_score import sentence_gleu

    return sentence_gleu([_reference_words(reference)], _words(given))


def _meteor(given: str, reference: str) -> float:
    from nltk.translate.meteor_score import single_meteor_score

    wordnet = cast(Any, NoSynonyms())  # the library asks for the reader of its own files
    return single_meteor_score(_reference_words(reference), _words(given), wordnet=wordnet)


class NoSynonyms:
    """In place of WordNet, which is no package: METEOR must be the same number on every machine."""

    def synsets(self, word: str) -> list[str]:
        """Return no synonyms."""
        return []


def _rouge_n(count: int, given: str, reference: str) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    _rouge_words(reference, at_least=count)
    return RougeScorer([f"rouge{count}"]).score(reference, given)[f"rouge{count}"].fmeasure


def _rouge_l(given: str, reference: str) -> float:
    # The library's own table grows with the product of the lengths: gigabytes for two long texts.
    from rapidfuzz.distance import LCSseq

    wanted, said = _rouge_words(reference, at_least=1), _rouge_words(given, at_least=0)
    return 2 * LCSseq.similarity(wanted, said) / (len(wanted) + len(said))


METRICS: Mapping[str, Callable[[str, str], float]] = {
    "fuzzy_match": _fuzzy_match,
    "bleu": _bleu,
    "gleu": _gleu,
    "meteor": _meteor,
    **{f"rouge_{count}": partial(_rouge_n, count) for count in range(1, 6)},
    "rouge_l": _rouge_l,
}
"""Input and reference to a score; what needs a model is not among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSimilarity:
    """Scores from 0 (nothing in common) to 1 (the same)."""

    name: str
    given: Template
    reference: Template
    metric: str
    embedder: Embedder | None = None
    """For `cosine`."""

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        """Fill both templates and compare. Raises GraderError for a row that cannot be compared."""
        sample = sample_of(trajectory)
        try:
            given = self.given.fill(task.row, sample)
            reference = self.reference.fill(task.row, sample)
        except AbsentFromOutput as absent:
            return absent.grade(self.name)
        for template, text in ((self.given, given), (self.reference, reference)):
            if len(text) > MAX_CHARACTERS:
                return self._unread(
                    template,
                    f"{len(text)} characters; at most {MAX_CHARACTERS} are compared",
                    "truncated_observation_error",
                )
        try:
            score = await self._similarity(given, reference)
        except TooFewWords as reason:
            return self._unread(self.reference, str(reason), "other_error")
        return Grade(score=min(max(score, 0.0), 1.0), grader=self.name)

    async def _similarity(self, given: str, reference: str) -> float:
        if self.embedder is None:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(_THREAD, METRICS[self.metric], given, reference)
        if not reference.strip():
            raise TooFewWords("the reference is empty, which has no embedding")
        if not given.strip():
            return 0.0
        left, right = await self.embedder.embed([given, reference])
        return _cosine(left, right)

    def _unread(self, template: Template, reason: str, code: str) -> Grade:
        """Blame whoever wrote the text."""
        message = f"grader {self.name!r}, {self.metric}: {reason}"
        if template.reads_output:
            return model_fault(self.name, message, code)
        raise GraderError(message, code=code)


def _words(text: str) -> list[str]:
    """Split as BLEU's tokenizer `13a` does."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp

    words = Tokenizer13a()(text).split()
    # It remembers the last 65,536 texts, whatever their size, and never sees one of them again.
    Tokenizer13a.__call__.cache_clear()
    TokenizerRegexp.__call__.cache_clear()
    return words


def _reference_words(text: str) -> list[str]:
    words = _words(text)
    if not words:
        raise TooFewWords("the reference has no words")
    return words


def _rouge_words(text: str, at_least: int) -> list[str]:
    from rouge_score.tokenizers import DefaultTokenizer

    words: list[str] = DefaultTokenizer().tokenize(text)
    if len(words) < at_least:
        raise TooFewWords(
            f"the reference has {len(words)} words of a-z and 0-9, all that ROUGE reads; "
            f"it needs {at_least}"
        )
    return words


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    norms = math.hypot(*left) * math.hypot(*right)
    if len(left) != len(right) or not 0 < norms < math.inf:
        raise GraderError(
            "the embedding model gave vectors of different lengths, or no direction",
            code="model_grader_server_error",
        )
    return sum(map(mul, left, right)) / norms
