"""The bodies of `responses`: what an agent loop with function tools sends and reads.

Nothing is stored here, so a request carries its whole conversation.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from agentrft.core.task import Message, ToolCall, ToolSpec
from agentrft.server.chat_wire import (
    ANY_OBJECT,
    MAX_TOP_LOGPROBS,
    Effort,
    FunctionToolName,
    JsonSchema,
    ObjectFormat,
    Only,
    PlainFormat,
    TokenLogprobs,
    ToolMode,
    list_or_text,
    object_or_text,
)
from agentrft.server.wire import Body, Metadata, Reply

Progress = Literal["in_progress", "completed", "incomplete"]


class TextPart(Body):
    """A piece of text; what a reply had beside it may be sent back and is not read."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Any = None
    logprobs: Any = None
    parsed: Any = None


class RefusalPart(Body):
    """A piece of an assistant's refusal."""

    type: Literal["refusal"]
    refusal: str


Part = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Tag("list")],
    Discriminator(list_or_text),
]


class MessageItem(Body):
    """A message, in the short form or as a reply had it. `developer` is rendered as `system`."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: str | None = None
    status: Progress | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class CallItem(Body):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]
    arguments: str
    id: str | None = None
    status: Progress | None = None
    parsed_arguments: Any = None
    caller: Annotated[Any, Only("calls are direct", ({"type": "direct"},))] = None
    namespace: Annotated[Any, Only("tools have no namespaces")] = None


class OutputItem(Body):
    """What a call came back with."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: str | None = None
    status: Progress | None = None
    caller: Annotated[Any, Only("calls are direct", ({"type": "direct"},))] = None


class ReasoningItem(Body):
    """Reasoning of another model; the models served here have none and do not see it."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: Any = None
    content: Any = None
    encrypted_content: str | None = None
    status: Progress | None = None


def _kind_of(item: object) -> str | None:
    if isinstance(item, BaseModel):
        return str(item.model_dump()["type"])
    if isinstance(item, Mapping):
        return item.get("type", "message")
    return None


_KINDS = "message, function_call, function_call_output and reasoning"
Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _kind_of,
        custom_error_type="unsupported_value",
        custom_error_message=f"an item must be an object of one of these types: {_KINDS}",
    ),
]


class FunctionTool(Body):
    """A function that the caller runs."""

    type: Literal["function"]
    name: FunctionToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Accepted, without effect: calls are read, not constrained while they are written."""
    defer_loading: Annotated[Any, Only("tools are always loaded", (False,))] = None
    allowed_callers: Annotated[Any, Only("calls are direct", (["direct"],))] = None
    output_schema: dict[str, Any] | None = None
    """Accepted, without effect: the model is not shown it."""


class FunctionChoice(Body):
    """The model must call this function."""

    type: Literal["function"]
    name: str


class ReasoningOptions(Body):
    """Accepted at every level: the models served here do not reason before they answer."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class SchemaFormat(JsonSchema):
    """An answer that fits a JSON schema."""

    type: Literal["json_schema"]


class TextOptions(Body):
    """What the text should look like."""

    format: (
        Annotated[PlainFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None
    verbosity: Annotated[Any, Only("ask for it in the messages", ("medium",))] = None


class StreamOptions(Body):
    """What a stream carries beside the events."""

    include_obfuscation: Annotated[Any, Only("streams are not padded", (False,))] = None


_STATELESS = "nothing is stored on this server, so send the whole conversation as input"


class ResponseBody(Body):
    """The body of a response request."""

    model: str
    input: Annotated[
        Annotated[str, Tag("text")] | Annotated[list[Item], Field(min_length=1), Tag("list")],
        Discriminator(list_or_text),
    ]
    instructions: str | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: (
        Annotated[
            Annotated[ToolMode, Tag("text")] | Annotated[FunctionChoice, Tag("object")],
            Discriminator(object_or_text),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    include: list[Literal["reasoning.encrypted_content", "message.output_text.logprobs"]] | None = (
        None
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    metadata: Metadata | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    """Accepted as a hint: prompts are always cached."""
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    store: Annotated[Any, Only("nothing is stored on this server", (False,))] = None
    previous_response_id: Annotated[Any, Only(_STATELESS)] = None
    conversation: Annotated[Any, Only(_STATELESS)] = None
    prompt: Annotated[Any, Only(_STATELESS)] = None
    background: Annotated[Any, Only("answers are not made in the background", (False,))] = None
    truncation: Annotated[Any, Only("inputs are never cut", ("disabled",))] = None
    service_tier: Annotated[Any, Only("there is one tier", ("auto", "default"))] = None
    max_tool_calls: Annotated[Any, Only("there are no built-in tools")] = None
    moderation: Annotated[Any, Only("there is no moderation")] = None
    prompt_cache_options: Annotated[Any, Only("prompts are always cached")] = None
    context_management: Annotated[Any, Only("inputs are never compacted", ([],))] = None


class TextReply(Reply):
    """The text of an answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprobs]


class MessageReply(Reply):
    """The text item of an answer."""

    type: Literal["message"] = "message"
    id: str
    status: Progress
    role: Literal["assistant"] = "assistant"
    content: list[TextReply]


class CallReply(Reply):
    """One call of an answer."""

    type: Literal["function_call"] = "function_call"
    id: str
    status: Progress
    call_id: str
    name: str
    arguments: str


class InputTokens(Reply):
    """Of the prompt."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokens(Reply):
    """Of the answer."""

    reasoning_tokens: int = 0


class ResponseUsage(Reply):
    """Tokens of a request."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens = OutputTokens()
    total_tokens: int


class ToolReply(Reply):
    """A tool as the request gave it; `strict` says what is done, not what was asked."""

    type: Literal["function"] = "function"
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: Literal[False] = False


class ChoiceReply(Reply):
    """The function that must be called."""

    type: Literal["function"] = "function"
    name: str


class Incomplete(Reply):
    """Why an answer is cut."""

    reason: Literal["max_output_tokens"]


class PlainText(Reply):
    """The answer is text."""

    type: Literal["text"] = "text"


class ObjectText(Reply):
    """The answer is a JSON object."""

    type: Literal["json_object"] = "json_object"


class SchemaText(Reply):
    """The answer fits a JSON schema; `strict` says what is done, not what was asked."""

    type: Literal["json_schema"] = "json_schema"
    name: str
    description: str | None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: Literal[True] = True


class TextSettings(Reply):
    """How the text was asked for."""

    format: PlainText | ObjectText | SchemaText
    verbosity: Literal["medium"] = "medium"


class NoReasoning(Reply):
    """The models served here do not reason before they answer."""

    effort: None = None
    summary: None = None


class ResponseError(Reply):
    """Why there is no whole answer."""

    code: Literal["server_error"] = "server_error"
    message: str


class ResponseReply(Reply):
    """A response, whole or as far as it got."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: Literal[False] = False
    error: ResponseError | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None = None
    model: str
    output: list[MessageReply | CallReply]
    parallel_tool_calls: bool
    previous_response_id: None = None
    prompt_cache_key: str | None
    reasoning: NoReasoning = NoReasoning()
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    temperature: float
    text: TextSettings
    tool_choice: ToolMode | ChoiceReply
    tools: list[ToolReply]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    metadata: dict[str, str]


def tool_specs(tools: Sequence[FunctionTool]) -> tuple[ToolSpec, ...]:
    """Return the tools as a dataset row would give them."""
    return tuple(
        ToolSpec(
            name=tool.name,
            description=tool.description or "",
            parameters=tool.parameters or {"type": "object", "properties": {}},
        )
        for tool in tools
    )


def answer_form(text: TextOptions | None) -> tuple[dict[str, Any] | None, TextSettings]:
    """Return the JSON schema that the answer is forced into, if any, and what the reply says of it."""
    match None if text is None else text.format:
        case ObjectFormat():
            return ANY_OBJECT, TextSettings(format=ObjectText())
        case SchemaFormat() as form:
            shown = SchemaText(name=form.name, description=form.description, schema=form.schema_)
            return form.schema_, TextSettings(format=shown)
        case _:
            return None, TextSettings(format=PlainText())


def core_messages(items: str | Sequence[Item]) -> list[tuple[str, Message]]:
    """Return messages as training sees them, each with its path in the body.

    Calls join the assistant text right before them: that is one turn of the model.
    """
    if isinstance(items, str):
        return [("input", Message(role="user", content=items))]
    messages: list[tuple[str, Message]] = []
    for index, item in enumerate(items):
        path = f"input[{index}]"
        match item:
            case MessageItem():
                messages.append((path, Message(role=item.role, content=_text(item.content))))
            case CallItem():
                call = ToolCall(id=item.call_id, name=item.name, arguments=item.arguments)
                last = messages.pop() if messages and messages[-1][1].role == "assistant" else None
                turn = last[1] if last else Message(role="assistant")
                calls = (*turn.tool_calls, call)
                messages.append(
                    (path, Message(role="assistant", content=turn.content, tool_calls=calls))
                )
            case OutputItem():
                message = Message(
                    role="tool", content=_text(item.output), tool_call_id=item.call_id
                )
                messages.append((path, message))
            case ReasoningItem():
                pass
    return messages


def _text(content: str | Sequence[Part]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)
