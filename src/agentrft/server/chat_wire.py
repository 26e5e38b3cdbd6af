"""The bodies of `chat/completions`: what is accepted, what is refused by name, what goes back.

A parameter that could not be honoured is accepted only at the value that asks for nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from agentrft.core.task import Message, ToolCall, ToolSpec
from agentrft.server.wire import Body, Metadata, Reply

MAX_CHOICES = 16
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
ANY_OBJECT: dict[str, Any] = {"type": "object"}
"""Schema of `json_object`."""

FunctionToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]+$", max_length=128)]
Stop = Annotated[str, Field(min_length=1)]
ToolMode = Literal["none", "auto", "required"]
Effort = Literal["default", "none", "minimal", "low", "medium", "high", "xhigh", "max"]


@dataclass(frozen=True, slots=True)
class Only:
    """Accepts null and `neutral`, which ask for nothing; refuses everything else with the reason."""

    reason: str
    neutral: tuple[object, ...] = ()

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": [None, *self.neutral], "description": f"Only this: {self.reason}."}

    def _check(self, value: object) -> object:
        # For Python, False equals 0; for JSON it does not.
        is_flag = isinstance(value, bool)
        if value is None or value in [n for n in self.neutral if isinstance(n, bool) == is_flag]:
            return value
        raise PydanticCustomError(
            "unsupported_value", "not supported: {reason}; leave it out", {"reason": self.reason}
        )


class TextPart(Body):
    """A piece of text content."""

    type: Literal["text"]
    text: str


class RefusalPart(Body):
    """A piece of an assistant's refusal."""

    type: Literal["refusal"]
    refusal: str


class WrittenFunction(Body):
    """The function of a call, as the model wrote it."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str
    parsed_arguments: Any = None
    """Added by clients that parse; not read."""


class WrittenCall(Body):
    """A call in an earlier assistant message."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"] = "function"
    function: WrittenFunction
    index: int | None = None
    """Left by clients that put a stream together; the order of the list counts."""


def list_or_text(value: object) -> str:
    """Tell which member of a union a value was meant for, so that its own mistakes are named."""
    return "list" if isinstance(value, list) else "text"


def object_or_text(value: object) -> str:
    """Tell which member of a union a value was meant for, so that its own mistakes are named."""
    return "object" if isinstance(value, Mapping | BaseModel) else "text"


TextContent = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[TextPart], Field(min_length=1), Tag("list")],
    Discriminator(list_or_text),
]
AssistantContent = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[
        list[Annotated[TextPart | RefusalPart, Field(discriminator="type")]],
        Field(min_length=1),
        Tag("list"),
    ],
    Discriminator(list_or_text),
]


class SystemMessage(Body):
    """Instructions. `developer` is rendered as `system`; names are not rendered."""

    role: Literal["system", "developer"]
    content: TextContent
    name: str | None = None


class UserMessage(Body):
    """What the user says, as text. Names are not rendered."""

    role: Literal["user"]
    content: TextContent
    name: str | None = None


class AssistantMessage(Body):
    """What the model said earlier, as a reply had it. Names are not rendered."""

    role: Literal["assistant"]
    content: AssistantContent | None = None
    refusal: str | None = None
    tool_calls: list[WrittenCall] | None = None
    name: str | None = None
    annotations: Annotated[Any, Only("there is no web search here", ([],))] = None
    audio: Annotated[Any, Only("messages are text")] = None
    function_call: Annotated[Any, Only("use tool_calls")] = None
    parsed: Any = None
    """Added by clients that parse; not read."""


class ToolMessage(Body):
    """What a tool answered."""

    role: Literal["tool"]
    content: TextContent
    tool_call_id: str
    name: str | None = None


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class FunctionDefinition(Body):
    """A function as the model is told about it."""

    name: FunctionToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Accepted, without effect: calls are read, not constrained while they are written."""


class FunctionTool(Body):
    """A tool that the caller runs."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Body):
    """Names one of the request's functions."""

    name: str


class FunctionChoice(Body):
    """The model must call this function."""

    type: Literal["function"]
    function: FunctionName


class StreamOptions(Body):
    """What a stream carries beside the text."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, Only("streams are not padded", (False,))] = None


class PlainFormat(Body):
    """An answer in whatever words."""

    type: Literal["text"]


class ObjectFormat(Body):
    """An answer that is a JSON object."""

    type: Literal["json_object"]


class JsonSchema(Body):
    """What an answer must look like. It is forced into the schema, `strict` or not."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$", max_length=64)]
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(Body):
    """An answer that fits a JSON schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class ChatCompletionBody(Body):
    """The body of a chat completion request."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    tools: list[FunctionTool] | None = None
    tool_choice: (
        Annotated[
            Annotated[ToolMode, Tag("text")] | Annotated[FunctionChoice, Tag("object")],
            Discriminator(object_or_text),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: (
        Annotated[
            Annotated[Stop, Tag("text")]
            | Annotated[list[Stop], Field(max_length=MAX_STOPS), Tag("list")],
            Discriminator(list_or_text),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    metadata: Metadata | None = None
    reasoning_effort: Effort | None = None
    """Accepted at every level: the models served here do not reason before they answer."""
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    """Accepted as a hint: prompts are always cached."""
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    response_format: (
        Annotated[PlainFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None
    store: Annotated[Any, Only("nothing is stored on this server", (False,))] = None
    frequency_penalty: Annotated[Any, Only("there are no penalties", (0,))] = None
    presence_penalty: Annotated[Any, Only("there are no penalties", (0,))] = None
    logit_bias: Annotated[Any, Only("tokens cannot be biased", ({},))] = None
    modalities: Annotated[Any, Only("answers are text", (["text"],))] = None
    audio: Annotated[Any, Only("answers are text")] = None
    prediction: Annotated[Any, Only("outputs cannot be predicted")] = None
    service_tier: Annotated[Any, Only("there is one tier", ("auto", "default"))] = None
    verbosity: Annotated[Any, Only("ask for it in the messages", ("medium",))] = None
    web_search_options: Annotated[Any, Only("there is no web search")] = None
    moderation: Annotated[Any, Only("there is no moderation")] = None
    prompt_cache_options: Annotated[Any, Only("prompts are always cached")] = None
    functions: Annotated[Any, Only("use tools", ([],))] = None
    function_call: Annotated[Any, Only("use tool_choice")] = None


class TopLogprob(Reply):
    """One token that could have been drawn."""

    token: str
    bytes: list[int] | None
    logprob: float


class TokenLogprobs(TopLogprob):
    """One token that was drawn."""

    top_logprobs: list[TopLogprob]


class Logprobs(Reply):
    """Of the tokens of one choice."""

    content: list[TokenLogprobs] | None
    refusal: None = None


class CalledFunction(Reply):
    """The function of a call."""

    name: str
    arguments: str


class CallReply(Reply):
    """One call of the answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantReply(Reply):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: Annotated[list[CallReply] | None, Field(exclude_if=lambda v: v is None)] = None


FinishReason = Literal["stop", "length", "tool_calls"]


class Choice(Reply):
    """One of the `n` answers."""

    index: int
    message: AssistantReply
    logprobs: Logprobs | None
    finish_reason: FinishReason


class PromptTokens(Reply):
    """Of the prompt."""

    cached_tokens: int
    audio_tokens: int = 0


class CompletionTokens(Reply):
    """Of the answers."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(Reply):
    """Tokens of a request; the prompt counts once, however many choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    completion_tokens_details: CompletionTokens


class ChatCompletion(Reply):
    """A whole reply."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    service_tier: Literal["default"] = "default"
    system_fingerprint: str


class FunctionDelta(Reply):
    """A piece of a call's function."""

    name: str | None = None
    arguments: str


class CallDeltaReply(Reply):
    """A piece of a call; id, type and name come with the first one."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(Reply):
    """What a chunk adds; what is not set is left out of the JSON."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    tool_calls: list[CallDeltaReply] | None = None


class ChunkChoice(Reply):
    """What a chunk adds to one choice."""

    index: int
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Reply):
    """One event of a streamed reply."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    service_tier: Literal["default"]
    system_fingerprint: str


def tool_specs(tools: Sequence[FunctionTool]) -> tuple[ToolSpec, ...]:
    """Return the tools as a dataset row would give them."""
    return tuple(
        ToolSpec(
            name=tool.function.name,
            description=tool.function.description or "",
            parameters=tool.function.parameters or {"type": "object", "properties": {}},
        )
        for tool in tools
    )


def answer_schema(form: PlainFormat | ObjectFormat | SchemaFormat | None) -> dict[str, Any] | None:
    """Return the JSON schema that the answer is forced into, if any."""
    match form:
        case ObjectFormat():
            return ANY_OBJECT
        case SchemaFormat():
            return form.json_schema.schema_
        case _:
            return None


def core_message(message: ChatMessage) -> Message:
    """Return a message as training sees it; a tool's name is found by its call later."""
    content = _text(message.content)
    if isinstance(message, ToolMessage):
        return Message(role="tool", content=content, tool_call_id=message.tool_call_id)
    if isinstance(message, AssistantMessage):
        calls = tuple(
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in message.tool_calls or ()
        )
        content = content or message.refusal or ""
        return Message(role="assistant", content=content, tool_calls=calls)
    return Message(role=message.role, content=content)


def _text(content: str | Sequence[TextPart | RefusalPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(p.text if isinstance(p, TextPart) else p.refusal for p in content)
