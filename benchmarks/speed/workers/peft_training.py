"""The loop that users write with transformers and PEFT: micro-batches under autocast, then a step."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from worker import Handler, serve


def prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    torch.set_num_threads(settings["threads"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    own, size = settings["completion_tokens"], settings["micro_batch"]
    base = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, settings["adapter"], is_trainable=True).to(device)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)

    def step(
        sequences: Sequence[Sequence[int]],
        advantages: Sequence[float],
        behavior_logprobs: Sequence[Sequence[float]],
    ) -> Mapping[str, Any]:
        ids_NT = torch.tensor(sequences, device=device)
        advantage_N1 = torch.tensor(advantages, device=device)[:, None]
        behavior_NC = torch.tensor(behavior_logprobs, device=device)
        total = 0.0
        for first in range(0, len(sequences), size):
            part = slice(first, first + size)
            with torch.autocast(device, torch.bfloat16):
                logits = model(ids_NT[part], logits_to_keep=own + 1).logits[:, :-1]
            chosen_NC1 = ids_NT[part, -own:, None]
            logprobs_NC = logits.float().log_softmax(-1).gather(-1, chosen_NC1).squeeze(-1)
            ratio_NC = (logprobs_NC - behavior_NC[part]).exp()
            least_NC = torch.minimum(
                ratio_NC * advantage_N1[part], ratio_NC.clamp(0.8, 1.28) * advantage_N1[part]
            )
            loss = -least_NC.sum() / (len(sequences) * own)
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0).item()
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": total, "gradient_norm": norm}

    return {"step": step}


serve(prepare)
