"""A grader that somebody hosts: one POST per finished rollout, a score back."""

import json
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from agentrft.core.errors import GraderError
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.egress.client import MAX_BODY_BYTES, Endpoint, EndpointReply, idempotency_key
from agentrft.egress.errors import AddressRefusedError, EndpointError, NotSentError, TryAgain
from agentrft.graders.template import sample_of


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointGrader:
    """Sends `sample`, `item` and `trace_id`, reads `score`. Whatever fails is never a zero."""

    name: str
    endpoint: Endpoint

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        """Ask for the score, again if there is none. Raises GraderError when that does not help."""
        request = {
            "sample": sample_of(trajectory),
            "item": task.row,
            "trace_id": trajectory.id,
        }
        body = json.dumps(request, ensure_ascii=False).encode(errors="replace")
        # The same rollout may be graded again, by a part of the same name or after a change: whoever
        # answers a key from memory would repeat what was said of something else.
        key = idempotency_key(trajectory.id, f"grade:{self.name}:{secrets.token_hex(8)}")
        try:
            score = await self.endpoint.call(body, self._score, key=key)
        except EndpointError as error:
            raise GraderError(str(error), code=_family(error)) from error
        return Grade(score=score, grader=self.name)

    def _score(self, reply: EndpointReply) -> float:
        """Read the score. Anything else may pass, so it is TryAgain, whatever the status."""
        if reply.body is None:
            raise TryAgain(f"the reply is too large (over {MAX_BODY_BYTES} bytes)")
        # Secrets first: a cut could leave half of one that nobody recognises.
        shown = self.endpoint.redact(reply.text)[:200]
        if reply.status != 200:
            raise TryAgain(f"HTTP {reply.status}: {shown}")
        value = reply.parsed()
        score = cast(Mapping[str, Any], value).get("score") if isinstance(value, dict) else None
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise TryAgain(f'no numeric `score` in {shown!r}; reply {{"score": 0.85}}')
        # False for NaN too; an integer may have more digits than a float can hold.
        if not abs(score) <= sys.float_info.max:
            raise TryAgain("`score` is not a finite number")
        return float(score)


def _family(error: EndpointError) -> str:
    match error:
        case AddressRefusedError():
            return "endpoint_grader_safety_check_error"
        case NotSentError():
            return "endpoint_grader_internal_error"
        case _:
            return "endpoint_grader_server_error"
