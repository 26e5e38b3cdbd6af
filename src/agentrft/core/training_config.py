"""Settings of everything that changes weights, as frozen data with units. Defaults are recipes that
have been run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Which weights train: a low-rank adapter (default) or all of them."""

    kind: Literal["lora", "full"] = "lora"
    rank: int = 16
    alpha: float = 32.0
    """Scale of the adapter is alpha / rank."""
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Names of the linear layers that get an adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """AdamW with linear warm-up, then constant."""

    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 2
    max_grad_norm: float = 1.0


LossKind = Literal["clip", "cispo", "gspo"]
OWN_CLIPS: Mapping[LossKind, tuple[float, float]] = {
    "clip": (0.2, 0.28),
    "cispo": (1.0, 4.0),
    "gspo": (3e-4, 4e-4),
}
"""Clip ranges that each kind was published with; a sequence's ratio moves far less than a token's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Policy gradient on the ratio to behaviour logprobs, and what holds it back."""

    kind: LossKind = "clip"
    """`clip` bounds each token's objective (PPO), `cispo` each token's weight, so that every token
    keeps its gradient, `gspo` the ratio of the whole sequence."""
    clip_low: float | None = None
    """The ratio counts down to 1 - clip_low. None takes the kind's own: 0.2, 1 (no bound), 3e-4."""
    clip_high: float | None = None
    """The ratio counts up to 1 + clip_high. None takes the kind's own: 0.28, 4, 4e-4."""
    kl_coefficient: float = 0.0
    """Weight of the KL divergence to the reference, per action token; 0 computes none."""
    sequence_log_ratio_bound: float = 2.0
    """A sample whose mean absolute log-ratio per action token exceeds this is masked out, in nats."""
    tokens_per_sequence: float = 64.0
    """Constant that normalises the token sum, so that long answers weigh no less per token."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest ratio that counts."""
        low, high = OWN_CLIPS[self.kind]
        low = low if self.clip_low is None else self.clip_low
        high = high if self.clip_high is None else self.clip_high
        return 1.0 - low, 1.0 + high


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceLoss:
    """Direct preference optimisation (arXiv 2305.18290)."""

    beta: float | None = None
    """Price of leaving the reference. None is 0.1, or 5 when `length_normalised`."""
    length_normalised: bool = False
    """Log-ratios are means over tokens instead of sums (arXiv 2411.15124), so that long answers are
    not preferred for their length."""
    imitation: float = 0.0
    """Weight of imitating what is preferred, beside the margin (arXiv 2404.19733): a margin alone is
    also won by making both less probable, the rejected one more so."""

    @property
    def price(self) -> float:
        """The beta that counts."""
        return self.beta if self.beta is not None else 5.0 if self.length_normalised else 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerConfig:
    """Everything the trainer needs besides samples."""

    adapter: Adapter = field(default_factory=Adapter)
    optimizer: Optimizer = field(default_factory=Optimizer)
    loss: Loss = field(default_factory=Loss)
    preference: PreferenceLoss = field(default_factory=PreferenceLoss)
    reference: Literal["start", "base"] = "start"
    """What KL and preferences are measured against: the weights that training began from, or the
    model without any adapter."""
    micro_batch_tokens: int = 2048
    """Tokens, padding included, that pass through the model at once."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute type; master weights of whatever trains are float32 always."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    """CPU threads of the tensor library; 0 takes the physical cores."""
    deterministic: bool = False
    """Bit-for-bit equal runs on CPU, slower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedConfig:
    """Imitate demonstrations."""

    steps: int = 30
    batch_size: int = 8
    """Demonstrations per optimizer step."""
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(optimizer=Optimizer(learning_rate=5e-4))
    )
    checkpoint_interval: int = 10
    """Steps between checkpoints; 0 writes one after each epoch. The last step always writes one."""
    validation_interval: int = 0
    """Steps between looks at held-out demonstrations, if there are any; 0 after each epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectionConfig:
    """Imitate the policy's own successes (rejection sampling, arXiv 2308.01825)."""

    samples: int = 8
    """Rollouts per train task."""
    tasks: int = 0
    """How many train tasks, in file order; 0 takes all."""
    temperature: float = 1.0
    most_per_task: int = 2
    """Different successes of one task that are imitated."""
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationConfig:
    """Teach the weights what a long spec makes the policy do, so that a short one is enough."""

    spec: str = ""
    """Folder of the short spec, relative to the project; empty for the project's own without
    demonstrations and added sections."""
    samples: int = 4
    """Rollouts per train task under the long spec."""
    tasks: int = 0
    """How many train tasks, in file order; 0 takes all."""
    temperature: float = 1.0
    most_per_task: int = 2
    """Different rollouts of one task that are imitated."""
    successes_only: bool = True
    """Imitate solved rollouts only; False takes all that were graded."""
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceConfig:
    """Learn from pairs of which one is better: from a file, or mined from rollouts."""

    steps: int = 30
    batch_size: int = 8
    """Pairs per optimizer step."""
    samples: int = 8
    """Rollouts per train task that pairs are mined from, if no file gives them."""
    tasks: int = 0
    """How many train tasks are mined, in file order; 0 takes all."""
    temperature: float = 1.0
    most_per_task: int = 4
    """Pairs of one task."""
    least_gap: float = 0.2
    """Difference of scores from which two rollouts make a pair."""
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(optimizer=Optimizer(learning_rate=5e-5))
    )
    checkpoint_interval: int = 10
    """Steps between checkpoints; 0 writes one after each epoch. The last step always writes one."""
    validation_interval: int = 0
    """Steps between looks at held-out pairs, if there are any; 0 after each epoch."""


MonitorAction = Literal["alert", "screen", "pause"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorConfig:
    """What watches a reinforcement run for a policy that games its grader.

    A monitor warns at its first threshold and acts at its second; `measure/monitors.py` has both.
    """

    action: MonitorAction = "pause"
    """How far an alarm may go: told, flagged rollouts left out of the gradient, the run paused."""
    canary_share: float = 0.02
    """Share of train tasks that get a corrupted reference and stay out of the gradient; at least two
    tasks if above 0 and the grader reads a reference."""
    second_model: str = ""
    """Entry of `grader_models` that grades validation rollouts again; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """How grades of a group become credit of its tokens."""

    advantage: Literal["centred", "rloo", "grpo"] = "centred"
    """Score minus the group's mean; minus the mean of the others (arXiv 2402.14740); or divided by the
    standard deviation (arXiv 2402.03300)."""
    turn_weight: float = 0.0
    """Weight of the scores that a grader gives to single turns, beside the outcome; 0 leaves them
    out."""
    turn_discount: float = 1.0
    """What a turn's score counts for each turn before it, [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskChoice:
    """Which tasks a step rolls out."""

    curriculum: bool = False
    """Pass over tasks whose last groups were solved or failed as a whole; else every task has its
    turn."""
    low: float = 0.1
    """Mean score of a task's last group from which it is worth another one."""
    high: float = 0.9
    """Mean score of a task's last group up to which it is."""
    revisited: float = 0.2
    """Share of tasks outside that range that get their turn all the same."""
    rounds: int = 1
    """Rounds of rollouts until enough groups have spread (dynamic sampling, arXiv 2503.14476); 1 takes
    what comes."""
    oversampling: float = 1.0
    """Tasks rolled out in a round per group that is still wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforcementConfig:
    """Group-relative policy gradient on graded rollouts."""

    steps: int = 40
    tasks_per_step: int = 8
    group_size: int = 8
    """Rollouts per task."""
    staleness: int = 0
    """Versions by which the acting policy may be behind the training one. 0: rollouts and training
    take turns. 1: the rollouts of a step are made while the step before it trains."""
    credit: Credit = field(default_factory=Credit)
    tasks: TaskChoice = field(default_factory=TaskChoice)
    temperature: float = 1.0
    """Of training rollouts; evaluation uses the spec's own."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint_interval: int = 5
    """Steps between checkpoints; the last step always writes one."""
    validation_interval: int = 0
    """Steps between evaluations on the validation split; 0 never."""
    validation_tasks: int = 50
    identity_bound: float = 0.05
    """Largest mean absolute difference between sampler and trainer canary logprobs, in nats."""
    max_storm_steps: int = 3
    """Steps in a row that lose half their groups to infrastructure before the run pauses."""
    monitors: MonitorConfig = field(default_factory=MonitorConfig)
