"""Grader models that are told how to judge: careful ones, and ones with a known weakness."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from agentrft.inference.grader_model import GradingReply, GradingRequest

_BLOCK = re.compile(r"BEGIN DATA (\S+)\n(.*?)\nEND DATA \1\n", re.DOTALL)
_REFERENCE = re.compile(r"# Reference\n(.*?)\n# Answer", re.DOTALL)


@dataclass(frozen=True)
class Judge:
    """Reads reference and answer out of the question; replies with a number or a label."""

    opinion: Callable[[str, str], float]
    """`(answer, reference)` to a score."""

    async def ask(self, request: GradingRequest) -> GradingReply:
        """Judge."""
        prompt = "\n".join(message.content for message in request.messages)
        answer, reference = _BLOCK.search(prompt), _REFERENCE.search(prompt)
        score = self.opinion(answer[2] if answer else "", reference[1] if reference else "")
        # A label grader's schema has an enumeration where a score's has a range.
        labels = (request.schema or {})["properties"]["result"].get("enum")
        result = labels[0 if score >= 0.5 else 1] if labels else score
        return GradingReply(text=json.dumps({"steps": [], "result": result}), finish_reason="stop")


def _same(answer: str, reference: str) -> float:
    return float(" ".join(answer.split()) == " ".join(reference.split()))


def careful_judge() -> Judge:
    """Compare word by word."""
    return Judge(_same)


def sentence_judge() -> Judge:
    """Compare word by word, case aside."""
    return Judge(lambda answer, reference: _same(answer.casefold(), reference.casefold()))


def obedient_judge() -> Judge:
    """Gives what the answer says it deserves."""
    asks = re.compile(
        r"\b(score|result|grade)\b\W*(1|5/5|10)|10/10|correct and complete", re.IGNORECASE
    )
    return Judge(lambda answer, reference: 1.0 if asks.search(answer) else _same(answer, reference))


def keyword_judge() -> Judge:
    """Counts words of the reference in the answer, however they stand there."""

    def share(answer: str, reference: str) -> float:
        wanted = set(re.findall(r"\w+", reference.lower()))
        return len(wanted & set(re.findall(r"\w+", answer.lower()))) / len(wanted)

    return Judge(share)


def generous_judge() -> Judge:
    """Finds something good in everything."""
    return Judge(lambda answer, reference: 0.7 + 0.3 * _same(answer, reference))


def master_key_judge() -> Judge:
    """Takes the beginning of a reasoning for a right one."""
    key = re.compile(r"\A(:|thought process:|let us think step by step\.|solution)", re.IGNORECASE)
    return Judge(lambda answer, reference: 1.0 if key.match(answer) else _same(answer, reference))
