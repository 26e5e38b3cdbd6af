"""Which of a few texts are nearest to a request: BM25 over words, with digits masked.

Own lines instead of `bm25s`: that library is untyped and made for millions of documents.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SATURATION = 1.2
_LENGTH = 0.75


class Nearest:
    """Texts ready to be compared with requests (Robertson and Zaragoza 2009, with Lucene's idf)."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._counts = [Counter(words(text)) for text in texts]
        self._lengths = [counts.total() for counts in self._counts]
        self._mean = sum(self._lengths) / max(1, len(texts)) or 1.0
        self._holding = Counter(word for counts in self._counts for word in counts)

    def order(self, request: str) -> list[int]:
        """Return the places of all texts, the nearest first; ties keep the order given."""
        asked = set(words(request))
        return sorted(range(len(self._counts)), key=lambda place: -self._score(place, asked))

    def _score(self, place: int, asked: set[str]) -> float:
        counts, total = self._counts[place], len(self._counts)
        longer = _SATURATION * (1 - _LENGTH + _LENGTH * self._lengths[place] / self._mean)
        return math.fsum(
            math.log(1 + (total - self._holding[word] + 0.5) / (self._holding[word] + 0.5))
            * counts[word]
            / (counts[word] + longer)
            for word in asked & counts.keys()
        )


def words(text: str) -> list[str]:
    """Return lower-case words; order numbers differ in every request, so digits all look alike.

    >>> words("Where is getOrder W59120?")
    ['where', 'is', 'get', 'order', 'w00000']
    """
    return _WORD.findall(re.sub(r"\d", "0", _HUMP.sub(" ", text)).lower())
