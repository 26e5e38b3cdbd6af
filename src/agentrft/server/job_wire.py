"""The body that creates a fine-tuning job, as the contract has it; every unknown key is an error."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from agentrft.server.wire import Body, Metadata

Id = Annotated[str, Field(min_length=1, max_length=256)]


def _auto(value: object) -> object:
    return None if value == "auto" else value


def _automatic(schema: dict[str, Any]) -> Any:
    """Accept `auto`, which is None inside."""
    return WithJsonSchema({"anyOf": [{"const": "auto"}, schema, {"type": "null"}]})


BatchSize = Annotated[
    int | None,
    Field(ge=1, le=256),
    BeforeValidator(_auto),
    _automatic({"type": "integer", "minimum": 1, "maximum": 256}),
]
Epochs = Annotated[
    int | None,
    Field(ge=1, le=50),
    BeforeValidator(_auto),
    _automatic({"type": "integer", "minimum": 1, "maximum": 50}),
]
Multiplier = Annotated[
    float | None,
    Field(gt=0, le=1000, allow_inf_nan=False),
    BeforeValidator(_auto),
    _automatic({"type": "number", "exclusiveMinimum": 0, "maximum": 1000}),
]
Beta = Annotated[
    float | None,
    Field(gt=0, le=2, allow_inf_nan=False),
    BeforeValidator(_auto),
    _automatic({"type": "number", "exclusiveMinimum": 0, "maximum": 2}),
]
Compute = Annotated[
    float | None,
    Field(gt=1e-5, le=10, allow_inf_nan=False),
    BeforeValidator(_auto),
    _automatic({"type": "number", "exclusiveMinimum": 1e-5, "maximum": 10}),
]
Count = Annotated[
    int | None,
    Field(ge=1, le=1_000_000),
    BeforeValidator(_auto),
    _automatic({"type": "integer", "minimum": 1, "maximum": 1_000_000}),
]


class SupervisedHyperparameters(Body):
    """Of imitation."""

    batch_size: BatchSize = None
    learning_rate_multiplier: Multiplier = None
    n_epochs: Epochs = None


class DpoHyperparameters(SupervisedHyperparameters):
    """Of learning from preferred answers."""

    beta: Beta = None


class ReinforcementHyperparameters(SupervisedHyperparameters):
    """Of learning from grades."""

    reasoning_effort: Literal["default", "low", "medium", "high"] | None = None
    compute_multiplier: Compute = None
    eval_interval: Count = None
    eval_samples: Count = None


class SupervisedBody(Body):
    """Imitate conversations."""

    hyperparameters: SupervisedHyperparameters | None = None


class DpoBody(Body):
    """Prefer one answer over the other."""

    hyperparameters: DpoHyperparameters | None = None


class ToolBody(Body):
    """A tool by URL."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    server_url: Annotated[str, Field(min_length=1, max_length=2048)]
    headers: dict[str, str] | None = None
    rate_limit: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)] | None = None
    """Calls per second."""


class ReinforcementBody(Body):
    """Roll out, grade, reinforce."""

    grader: dict[str, Any]
    gold_grader: dict[str, Any] | None = None
    """Held-out grader: watched at every evaluation, never in the gradient (an extension)."""
    tools: Annotated[list[ToolBody], Field(max_length=128)] | None = None
    response_format: dict[str, Any] | None = None
    max_episode_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    hyperparameters: ReinforcementHyperparameters | None = None


class MethodBody(Body):
    """One method and its settings."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: SupervisedBody | None = None
    dpo: DpoBody | None = None
    reinforcement: ReinforcementBody | None = None

    @model_validator(mode="after")
    def _only_the_chosen_one(self) -> "MethodBody":
        for name in ("supervised", "dpo", "reinforcement"):
            if name != self.type and getattr(self, name) is not None:
                raise ValueError(f"type is {self.type!r}, so leave '{name}' out")
        if self.type == "reinforcement" and self.reinforcement is None:
            raise ValueError("type is 'reinforcement', so 'reinforcement' with a grader is needed")
        return self


class WandbBody(Body):
    """Where to report."""

    project: Annotated[str, Field(min_length=1)]
    name: str | None = None
    entity: str | None = None
    tags: list[str] | None = None


class IntegrationBody(Body):
    """A reporter."""

    type: Literal["wandb"]
    wandb: WandbBody


class JobBody(Body):
    """A fine-tuning job as it is asked for."""

    model: Id
    training_file: Id
    validation_file: Id | None = None
    method: MethodBody | None = None
    hyperparameters: SupervisedHyperparameters | None = None
    """Deprecated; means `method.supervised.hyperparameters`."""
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: Metadata | None = None
    integrations: Annotated[list[IntegrationBody], Field(max_length=5)] | None = None

    @model_validator(mode="after")
    def _one_place_for_hyperparameters(self) -> "JobBody":
        if self.hyperparameters is not None and self.method is not None:
            chosen = self.method.type
            given = self.hyperparameters.model_fields_set
            if given and (chosen != "supervised" or self.method.supervised is not None):
                raise ValueError(
                    f"the top-level 'hyperparameters' are deprecated and mean supervised ones; "
                    f"put them into 'method.{chosen}.hyperparameters'"
                )
        return self
