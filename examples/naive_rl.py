"""Reinforcement fine-tuning of a tool-using agent in one file: the readable twin of the real loop.

No store, no engine, no shared prompts: rollouts one by one with `generate`, one padded batch a step.
A parity test holds its formulas and those of `agentrft.training` to the same loss and gradients.

    python examples/naive_rl.py                                          # random tiny model, seconds
    python examples/naive_rl.py --model HuggingFaceTB/SmolLM2-135M-Instruct --steps 20

The task: a price list behind one tool. The agent writes `<name>` to see a price and must repeat it.
"""

import argparse
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PRICES = {"pen": "3", "lamp": "24", "desk": "180", "chair": "95", "mug": "7", "plant": "16"}
MAX_TURNS = 3


@dataclass(frozen=True)
class Config:
    """Settings of the loss, as in `agentrft.core.config.Loss`, and of the loop."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    sequence_log_ratio_bound: float = 2.0
    tokens_per_sequence: float = 64.0
    temperature: float = 1.0
    learning_rate: float = 1e-3
    max_grad_norm: float = 1.0
    tasks_per_step: int = 3
    group_size: int = 4
    turn_tokens: int = 16


@dataclass
class Rollout:
    """One append-only sequence under construction: prompt, answers and tool results as tokens."""

    token_ids: list[int]
    action_mask: list[bool]
    """True where the policy sampled."""
    behavior_logprobs: list[float]
    advantage: float = 0.0


class ByteTokenizer:
    """Enough of a tokenizer for a random model: bytes as ids, 0 ends a turn."""

    eos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return bytes(i for i in ids if 0 < i < 256).decode(errors="replace")


def tiny_model() -> Any:
    """Return a random Llama that knows nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 256, "hidden_size": 48, "intermediate_size": 96}
    depth = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes: dict[str, Any] = {**shape, **depth, "eos_token_id": 0, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=None))


# --- act ---------------------------------------------------------------------------------------------


def rollout(model: Any, tokenizer: Any, product: str, config: Config) -> tuple[Rollout, float]:
    """Let the agent look a product up and answer; return the tokens and the reward."""
    prompt = f"Write <name> to see a price, then repeat the price. How much is the {product}?\n"
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    record = Rollout(list(ids), [False] * len(ids), [0.0] * len(ids))
    looked_up, answer = False, ""
    for _ in range(MAX_TURNS):
        answer = act(model, tokenizer, record, config)
        if (call := re.search(r"<(\w+)>", answer)) is None:
            break
        looked_up = looked_up or call[1] == product
        result = f"\n{PRICES.get(call[1], 'unknown')}\n"
        observe(record, tokenizer.encode(result, add_special_tokens=False))
    return record, reward(answer, PRICES[product], looked_up)


def act(model: Any, tokenizer: Any, record: Rollout, config: Config) -> str:
    """Sample one turn and append it with the log-probabilities it was sampled with."""
    prompt_1T = torch.tensor([record.token_ids], device=model.device)
    output = model.generate(
        prompt_1T,
        attention_mask=torch.ones_like(prompt_1T),
        do_sample=True,
        temperature=config.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=config.turn_tokens,
        pad_token_id=tokenizer.eos_token_id,
        return_dict_in_generate=True,
        output_scores=True,
    )
    action_ids = output.sequences[0, prompt_1T.shape[1] :].tolist()
    # Scores come after the temperature: the distribution that was really drawn from.
    logprobs = [
        scores_1V[0].float().log_softmax(-1)[token].item()
        for scores_1V, token in zip(output.scores, action_ids, strict=True)
    ]
    record.token_ids += action_ids
    record.action_mask += [True] * len(action_ids)
    record.behavior_logprobs += logprobs
    return str(tokenizer.decode(action_ids, skip_special_tokens=True))


def observe(record: Rollout, ids: Sequence[int]) -> None:
    """Append a tool result: context for what follows, never something to learn."""
    record.token_ids += ids
    record.action_mask += [False] * len(ids)
    record.behavior_logprobs += [0.0] * len(ids)


def reward(answer: str, price: str, looked_up: bool) -> float:
    """One for the right price after a look-up; a little for digits, so that a random model moves."""
    if looked_up and re.findall(r"\d+", answer) == [price]:
        return 1.0
    return 0.2 * sum(character.isdigit() for character in answer) / max(1, len(answer))


# --- learn -------------------------------------------------------------------------------------------


def batch_of(groups: Sequence[Sequence[tuple[Rollout, float]]]) -> list[Rollout]:
    """Give every rollout its reward minus its group's mean; groups without spread teach nothing."""
    batch: list[Rollout] = []
    for group in groups:
        rewards = [reward for _, reward in group]
        if max(rewards) - min(rewards) < 1e-9:
            continue
        for record, value in group:
            record.advantage = value - sum(rewards) / len(rewards)
            batch.append(record)
    return batch


def policy_logprobs(model: Any, batch: Sequence[Rollout], temperature: float) -> Tensor:
    """Return the log-probability of every token but the first, (B, T - 1), padded on the right."""
    shape = len(batch), max(len(record.token_ids) for record in batch)
    ids_BT, real_BT = torch.zeros((2, *shape), dtype=torch.long, device=model.device)
    for row, record in enumerate(batch):
        ids_BT[row, : len(record.token_ids)] = torch.tensor(record.token_ids)
        real_BT[row, : len(record.token_ids)] = 1
    logits_BTV = model(input_ids=ids_BT, attention_mask=real_BT).logits[:, :-1].float()
    logprobs_BTV = (logits_BTV / temperature).log_softmax(-1)
    return logprobs_BTV.gather(-1, ids_BT[:, 1:, None])[..., 0]


def padded(rows: Sequence[Sequence[float]], like_BT: Tensor) -> Tensor:
    """Return rows without their first token, as a tensor of zeros otherwise."""
    values_BT = torch.zeros_like(like_BT)
    for row, values in enumerate(rows):
        values_BT[row, : len(values) - 1] = torch.tensor(values[1:])
    return values_BT


def policy_gradient(model: Any, batch: Sequence[Rollout], config: Config) -> Tensor:
    """Return -sum(min(ratio * A, clip(ratio) * A)) / (tokens_per_sequence * sequences)."""
    policy_BT = policy_logprobs(model, batch, config.temperature)
    behavior_BT = padded([record.behavior_logprobs for record in batch], policy_BT)
    mask_BT = padded([record.action_mask for record in batch], policy_BT)
    advantages_B1 = torch.tensor([[record.advantage] for record in batch], device=model.device)
    log_ratio_BT = (policy_BT - behavior_BT) * mask_BT
    distance_B1 = log_ratio_BT.abs().sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True)
    kept_B1 = distance_B1 <= config.sequence_log_ratio_bound
    ratio_BT = torch.where(kept_B1, log_ratio_BT, 0.0).exp()
    clipped_BT = ratio_BT.clamp(1 - config.clip_low, 1 + config.clip_high)
    objective_BT = torch.minimum(ratio_BT * advantages_B1, clipped_BT * advantages_B1)
    return -(objective_BT * mask_BT * kept_B1).sum() / (config.tokens_per_sequence * len(batch))


def cross_entropy(model: Any, batch: Sequence[Rollout], config: Config) -> Tensor:
    """Return the mean negative log-probability of action tokens, weighted by the advantage."""
    policy_BT = policy_logprobs(model, batch, config.temperature)
    mask_BT = padded([record.action_mask for record in batch], policy_BT)
    weights_BT = mask_BT * torch.tensor([[record.advantage] for record in batch])
    return -(weights_BT * policy_BT).sum() / weights_BT.sum()


def loss_and_gradients(
    model: Any,
    batch: Sequence[Rollout],
    config: Config,
    loss: Callable[[Any, Sequence[Rollout], Config], Tensor] = policy_gradient,
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss and the gradient of every trainable parameter; leaves them in `grad` too."""
    model.zero_grad()
    value = loss(model, batch, config)
    value.backward()
    parameters = dict(model.named_parameters())
    return value.item(), {name: p.grad for name, p in parameters.items() if p.grad is not None}


def train(model: Any, tokenizer: Any, config: Config, *, steps: int, seed: int) -> list[float]:
    """Run the loop; return the mean reward of every step."""
    random.seed(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    curve: list[float] = []
    for step in range(steps):
        products = random.sample(sorted(PRICES), config.tasks_per_step)
        groups = [
            [rollout(model, tokenizer, product, config) for _ in range(config.group_size)]
            for product in products
        ]
        curve.append(sum(r for group in groups for _, r in group) / sum(map(len, groups)))
        batch = batch_of(groups)
        if not batch:
            continue
        loss, _ = loss_and_gradients(model, batch, config)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        print(f"step {step}: reward {curve[-1]:.3f}, loss {loss:+.4f}, {len(batch)} rollouts")
    return curve


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Reinforcement fine-tuning in one file.")
    parser.add_argument("--model", default="", help="hub id or folder; empty for a tiny random one")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model, tokenizer, config = tiny_model(), ByteTokenizer(), Config()
    if options.model:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
        tokenizer, config = AutoTokenizer.from_pretrained(options.model), Config(learning_rate=1e-5)
    train(model.eval(), tokenizer, config, steps=options.steps, seed=options.seed)


if __name__ == "__main__":
    main()
