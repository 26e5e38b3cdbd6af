"""A rollout as HTML: what the model wrote, what it called, what came back. Everything is escaped."""

from html import escape

from agentrft.core.run import RolloutRecord
from agentrft.core.trajectory import Turn


def turn_blocks(turn: Turn) -> str:
    """Return a turn: text, calls, calls that could not be read, results."""
    blocks: list[str] = []
    if turn.message.content:
        blocks.append(block("assistant", turn.message.content))
    blocks += [
        block("", f"{call.name} {call.arguments}", "call") for call in turn.message.tool_calls
    ]
    blocks += [
        block(f"unreadable call: {failure.reason}", failure.raw, "call failed")
        for failure in turn.parse_failures
    ]
    blocks += [
        block("", result.content, "result failed" if result.is_error else "result")
        for result in turn.tool_results
    ]
    return "".join(blocks)


def block(label: str, text: str, kind: str = "") -> str:
    """Return one message."""
    heading = f"<b>{escape(label)}</b>" if label else ""
    return f'<div class="message {kind}">{heading}{escape(text)}</div>'


def evidence(record: RolloutRecord, label: str, remark: str) -> str:
    """Return a whole rollout, folded; links go to it by its id."""
    trajectory = record.graded.trajectory
    asked = "".join(block(m.role, m.content) for m in trajectory.prompt if m.role == "user")
    return (
        f'<details class="panel sample evidence" id="{escape(trajectory.id)}"><summary>{escape(label)} '
        f'<span class="soft">{escape(remark)}</span></summary><div class="body">{asked}'
        f"{''.join(turn_blocks(turn) for turn in trajectory.turns)}</div></details>"
    )
