import asyncio

import pytest

from agentrft.core.errors import SamplerError
from agentrft.core.policy import Weights
from agentrft.core.protocols import SampleRequest
from agentrft.core.trajectory import FinishReason
from agentrft.inference.scripted import ScriptedSampler

REQUEST = SampleRequest(prompt_ids=(1, 2), max_tokens=4, stop_token_ids=(9,))


def test_answers_come_in_order_and_requests_are_kept() -> None:
    sampler = ScriptedSampler([(5, 9), (6,)], logprob=-1.5)
    first = asyncio.run(sampler.sample(REQUEST))
    second = asyncio.run(sampler.sample(REQUEST))
    assert (first.token_ids, first.logprobs) == ((5, 9), (-1.5, -1.5))
    assert second.token_ids == (6,)
    assert sampler.requests == [REQUEST, REQUEST]
    with pytest.raises(SamplerError, match="2 answers, one more was asked"):
        asyncio.run(sampler.sample(REQUEST))


@pytest.mark.parametrize(
    ("answer", "token_ids", "reason"),
    [
        ((5, 9, 7), (5, 9), FinishReason.STOP),
        ((5, 6, 7, 9), (5, 6, 7, 9), FinishReason.STOP),
        ((5, 6, 7, 8, 9), (5, 6, 7, 8), FinishReason.LENGTH),
        ((5, 6, 7, 8), (5, 6, 7, 8), FinishReason.LENGTH),
        ((5, 6), (5, 6), FinishReason.STOP),
        ((), (), FinishReason.STOP),
    ],
)
def test_answers_end_like_an_engines(
    answer: tuple[int, ...], token_ids: tuple[int, ...], reason: FinishReason
) -> None:
    completion = asyncio.run(ScriptedSampler([answer]).sample(REQUEST))
    assert (completion.token_ids, completion.finish_reason) == (token_ids, reason)


def test_a_function_answers_from_the_request() -> None:
    sampler = ScriptedSampler(lambda request: (*request.prompt_ids, 9))
    assert asyncio.run(sampler.sample(REQUEST)).token_ids == (1, 2, 9)


def test_weights_that_arrive_during_an_answer_show_in_its_versions() -> None:
    async def publish(_request: SampleRequest) -> None:
        await sampler.load(Weights(version=3, tensors={}, canaries=()))

    sampler = ScriptedSampler([(5,), (6,)], before=publish)
    first = asyncio.run(sampler.sample(REQUEST))
    second = asyncio.run(sampler.sample(REQUEST))
    assert (first.first_version, first.last_version) == (0, 3)
    assert (second.first_version, second.last_version) == (3, 3)


def test_scores_are_constant_with_one_for_each_token_after_the_first() -> None:
    scores = asyncio.run(ScriptedSampler([], logprob=-0.25).score([(1, 2, 3), (4,), ()]))
    assert scores == [[-0.25, -0.25], [], []]
