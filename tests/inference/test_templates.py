"""Chat templates for other programs write what our renderers write, token by token."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agentrft.core.task import Message, ToolCall, ToolSpec
from agentrft.inference.renderer import ChatRenderer
from agentrft.inference.templates import chat_template
from agentrft.inference.tokenizer import ChatTokenizer

ORDER = {
    "type": "object",
    "properties": {
        "order_id": {"type": "string", "description": "as printed\n on it"},
        "many": {"enum": ["a", 1]},
        "maybe": {"type": ["string", "null"]},
        "deep": {
            "type": "object",
            "properties": {"x": {"type": "number"}, "y": {"type": "array", "items": {}}},
            "required": ["x"],
        },
        "either": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["order_id"],
}
TOOLS = (
    ToolSpec(name="get_order", description="Look  an\norder up.", parameters=ORDER),
    ToolSpec(name="ping", description="", parameters={}),
)
CALLS = (
    ToolCall(id="a", name="get_order", arguments='{"order_id": "W1"}'),
    ToolCall(id="b", name="ping", arguments="{}"),
)
RESULTS = (
    Message(role="tool", content="shipped", tool_call_id="a", name="get_order"),
    Message(role="tool", content="pong", tool_call_id="b", name="ping"),
)
ASKED = Message(role="user", content="Where is it? é")
CONVERSATIONS = {
    "a question": (ASKED,),
    "with system text": (Message(role="system", content="Be brief."), ASKED),
    "developer text": (Message(role="developer", content="Be brief."), ASKED),
    "waiting for the answer": (ASKED, Message(role="assistant", tool_calls=CALLS), *RESULTS),
    "going on": (
        ASKED,
        Message(role="assistant", content=" let me see ", tool_calls=CALLS),
        *RESULTS,
        Message(role="assistant", content="shipped"),
        Message(role="user", content="thanks"),
    ),
}


def as_sent(message: Message) -> Mapping[str, Any]:
    """A message as other programs hand it to a template."""
    sent: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        functions = [
            {"name": call.name, "arguments": call.arguments} for call in message.tool_calls
        ]
        sent["tool_calls"] = [{"type": "function", "function": one} for one in functions]
    return sent


def as_offered(tool: ToolSpec) -> Mapping[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
    }
    return {"type": "function", "function": function}


@pytest.mark.parametrize("family", ["smollm2", "qwen2"])
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("tools", [(), TOOLS], ids=["no tools", "tools"])
def test_a_template_writes_what_the_renderer_writes(
    family_folders: Mapping[str, Path],
    renderers: Mapping[str, ChatRenderer],
    tmp_path: Path,
    family: str,
    name: str,
    tools: tuple[ToolSpec, ...],
) -> None:
    renderer, messages = renderers[family], CONVERSATIONS[name]
    assert renderer.template is not None
    for file in family_folders[family].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(chat_template(renderer.template, "jinja"))
    written = ChatTokenizer(tmp_path).apply_chat_template(
        [as_sent(message) for message in messages],
        tools=[as_offered(tool) for tool in tools] or None,
        add_generation_prompt=True,
    )
    assert tuple(written) == renderer.start(messages, tools)


def test_families_with_a_template_of_their_own_keep_it(
    renderers: Mapping[str, ChatRenderer],
) -> None:
    assert renderers["qwen3"].template is None
    assert renderers["template"].template is None


def test_templates_for_llama_cpp_use_no_filter_it_lacks() -> None:
    # Its own reader of Jinja knows `select` only with a test.
    for name in ("signatures", "schemas"):
        assert "| select |" not in chat_template(name, "jinja")
