"""vLLM's CPU build in its offline mode, with its prefix cache."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm import LLM, SamplingParams
from worker import Handler, serve


def prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    llm = LLM(
        model=settings["model"],
        dtype="bfloat16",
        max_model_len=settings["context_tokens"],
        max_num_seqs=settings["most_sequences"],
        enable_prefix_caching=True,
        disable_log_stats=True,
    )

    def generate(prompts: Sequence[Sequence[int]], tokens: int, seed: int) -> Mapping[str, Any]:
        llm.reset_prefix_cache()
        params = [
            SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, seed=None)
            for _ in prompts
        ]
        found = llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False
        )
        return {"tokens": sum(len(one.outputs[0].token_ids) for one in found)}

    return {"generate": generate}


if __name__ == "__main__":  # it starts processes that import this file again
    serve(prepare)
