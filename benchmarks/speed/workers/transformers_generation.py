"""transformers: `generate` on a padded batch, or its continuous batching."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from worker import Handler, serve


def prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    torch.set_num_threads(settings["threads"])
    continuous = settings["continuous"]
    model = AutoModelForCausalLM.from_pretrained(
        settings["model"], dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    model.to(settings["device"])

    def asked(tokens: int) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=tokens,
            min_new_tokens=None if continuous else tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            # No token ends an answer: every system makes the same number.
            eos_token_id=-1 if continuous else None,
            pad_token_id=0,
        )

    @torch.inference_mode()
    def generate(prompts: Sequence[Sequence[int]], tokens: int, seed: int) -> Mapping[str, Any]:
        torch.manual_seed(seed)
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        )
        out = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=asked(tokens),
        )
        return {"tokens": (out.shape[1] - longest) * len(prompts)}

    @torch.inference_mode()
    def generate_batch(
        prompts: Sequence[Sequence[int]], tokens: int, seed: int
    ) -> Mapping[str, Any]:
        found = model.generate_batch(
            [list(prompt) for prompt in prompts],
            generation_config=asked(tokens),
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=settings["blocks"], max_batch_tokens=settings["batch_tokens"], seed=seed
            ),
            warmup=False,
        )
        return {"tokens": sum(len(one.generated_tokens) for one in found.values())}

    return {"generate": generate_batch if continuous else generate}


serve(prepare)
