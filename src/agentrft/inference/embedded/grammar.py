"""Answers forced into a JSON schema: which tokens may come next. A thin cover of llguidance.

Letters: S rows of logits, V vocabulary.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor

from agentrft.core.errors import UserError

_MOST_SCHEMA_CHARACTERS = 100_000
_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write it: blanks wherever they may stand are a place to get lost for a small model."""


class Grammar:
    """Where one answer stands in its schema. Not for two threads at once."""

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
    """Makes grammars for one tokenizer, which is read when the first is wanted: it takes a second."""

    def __init__(
        self, tokenizer_json: Callable[[], str], vocabulary: int, stop_ids: Sequence[int]
    ) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocabulary = vocabulary
        self._stop_ids = list(stop_ids)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return LLTokenizer(
            self._tokenizer_json(), n_vocab=self._vocabulary, eos_token=self._stop_ids
        )

    def of(self, schema: Mapping[str, Any]) -> Grammar:
        """Return the grammar of a schema, at its beginning. Raises UserError if it has none."""
        text = json.dumps(schema)
        if len(text) > _MOST_SCHEMA_CHARACTERS:
            raise UserError(
                f"the JSON schema has {len(text)} characters; at most {_MOST_SCHEMA_CHARACTERS} "
                "are read"
            )
        matcher = LLMatcher(
            self._tokenizer,
            LLMatcher.grammar_from_json_schema(text, overrides=_STYLE),
            log_level=0,
            limits=LLParserLimits(verbose_errors=False),
        )
        if matcher.is_error():
            reason = matcher.get_error().strip().splitlines()[0]
            raise UserError(f"the JSON schema cannot be forced: {reason}")
        return Grammar(matcher, self._vocabulary, self._stop_ids)
