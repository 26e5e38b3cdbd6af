"""Answers forced into a grammar: which tokens may come next. A thin cover of llguidance.

Letters: S rows of logits, V vocabulary.
"""

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor

from agentrft.core.errors import UserError
from agentrft.inference.turn_grammar import first_line

_MOST_GRAMMARS = 256
"""Kept compiled: served chats may bring a schema each."""


class Grammar:
    """Where one answer stands in its grammar. Not for two threads at once."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, stop_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._stop_ids = stop_ids

    @property
    def failed(self) -> str:
        """Why no more tokens can be told apart; empty while they can."""
        return self._matcher.get_error()

    def take(self, token: int) -> None:
        """Go on by a token that was drawn."""
        self._matcher.consume_token(token)

    def allowed(self, guesses: Sequence[int]) -> list[Tensor | None]:
        """Return what may come next, and after each guess; None once a guess was wrong.

        One boolean per entry of the vocabulary. The grammar itself stays where it is.
        """
        masks = [self._mask()]
        for token in guesses:
            # After a stop token nothing is drawn, and it could not be taken back.
            if not masks[-1][token] or token in self._stop_ids:
                break
            self._matcher.consume_token(token)
            masks.append(self._mask())
        self._matcher.rollback(len(masks) - 1)
        return [*masks, *[None] * (len(guesses) + 1 - len(masks))]

    def _mask(self) -> Tensor:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return torch.from_numpy(
            np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(bool)
        )


def where_allowed(
    logits_SV: Tensor, forms: Sequence[tuple[Grammar | None, Sequence[int]]]
) -> Tensor:
    """Return logits that are minus infinity where a grammar forbids; without grammars, as they are.

    Each sequence comes with its guesses and has one row more than these.
    """
    masked_SV = logits_SV
    row = 0
    for grammar, guesses in forms:
        if grammar is not None:
            if masked_SV is logits_SV:
                masked_SV = logits_SV.clone()
            for offset, allowed_V in enumerate(grammar.allowed(guesses)):
                if allowed_V is not None:
                    forbidden_V = ~allowed_V.to(masked_SV.device)
                    masked_SV[row + offset].masked_fill_(forbidden_V, -torch.inf)
        row += len(guesses) + 1
    return masked_SV


class Grammars:
    """Makes grammars for one tokenizer, which is read when the first is wanted.

    Compiling takes milliseconds and each text is compiled once; a copy takes microseconds.
    """

    def __init__(self, tokenizer_json: Callable[[], str], vocabulary: int) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._tokenizer = lru_cache(self._read)
        self._compiled = lru_cache(_MOST_GRAMMARS)(self._compile)

    def begin(self, grammar: str, stop_ids: tuple[int, ...]) -> Grammar:
        """Return a grammar at its beginning. Raises UserError for a text that is none."""
        with self._lock:
            matcher = self._compiled(grammar, stop_ids).deep_copy()
        return Grammar(matcher, self._vocabulary, stop_ids)

    def _read(self, stop_ids: tuple[int, ...]) -> LLTokenizer:
        return LLTokenizer(
            self._tokenizer_json(), n_vocab=self._vocabulary, eos_token=list(stop_ids)
        )

    def _compile(self, grammar: str, stop_ids: tuple[int, ...]) -> LLMatcher:
        matcher = LLMatcher(
            self._tokenizer(stop_ids),
            grammar,
            log_level=0,
            limits=LLParserLimits(verbose_errors=False),
        )
        if matcher.is_error():
            raise UserError(f"the answer cannot be forced: {first_line(matcher.get_error())}")
        return matcher
