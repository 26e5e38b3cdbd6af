"""Write the table of docs/graders.md: every type of grader object against four kinds of input.

    PYTHONPATH=tests/graders:tests/egress python tests/graders/grader_table.py

Every row is really graded: embeddings, grader models and endpoints are scripted, code runs in the
sandbox of this machine.
"""

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from answers import Letters
from raw_server import Raw, reply, serving

from agentrft.core.config import SandboxConfig
from agentrft.core.errors import ConfigError
from agentrft.core.protocols import Sandbox
from agentrft.graders.backends import Backends
from agentrft.graders.dry_run import run_grader
from agentrft.inference.grader_model import GradingReply, ScriptedGraderModel
from agentrft.jobs.grading import DeferredSandbox

ROW = {"reference": "Paris", "plan": "{{item.reference}}"}
ESCAPES = "{{item.reference}} {% raw %} ${reference} {0.__class__}"


@dataclass(frozen=True)
class Case:
    """One row of the table: what is graded, and how it reads in words."""

    kind: str
    what: str
    grader: Mapping[str, Any]
    output: str = "Paris"
    says: GradingReply | None = None
    """What the grader model answers."""
    answer: Raw | None = None
    """What the endpoint answers."""
    item: Mapping[str, Any] = field(default_factory=lambda: ROW)


def check(**more: Any) -> dict[str, Any]:
    fields = {"input": "{{sample.output_text}}", "reference": "{{item.reference}}"}
    return {"type": "string_check", "operation": "eq", **fields, **more}


def similar(metric: str, **more: Any) -> dict[str, Any]:
    fields = {"input": "{{sample.output_text}}", "reference": "{{item.reference}}"}
    return {"type": "text_similarity", "evaluation_metric": metric, **fields, **more}


def code(body: str, **more: Any) -> dict[str, Any]:
    return {"type": "python", "source": f"def grade(sample, item):\n    {body}\n", **more}


def judge(kind: str = "score_model", **more: Any) -> dict[str, Any]:
    asked = [{"role": "user", "content": "Is this {{item.reference}}? {{sample.output_text}}"}]
    labels = {"labels": ["good", "bad"], "passing_labels": ["good"]}
    own = labels if kind == "label_model" else {}
    return {"type": kind, "model": "judge", "input": asked, **own, **more}


def says(result: object) -> GradingReply:
    return GradingReply(text=json.dumps({"steps": [], "result": result}), finish_reason="stop")


def multi(formula: str, **parts: Any) -> dict[str, Any]:
    return {"type": "multi", "graders": parts, "calculate_output": formula}


TWICE = GradingReply(text='{"result": 0, "result": 1}', finish_reason="stop")
HOSTED = {"type": "endpoint", "url": "http://127.0.0.1:1/grade"}
EXACT = "return float(sample['output_text'] == item['reference'])"
BY_CITY = check(input="{{sample.output_json.city}}")
EVALUATES = code("return eval(sample['output_text'])")

CASES = (
    Case("valid", "the reference", check()),
    Case("wrong", "another text", check(), "Rome"),
    Case("malformed", "`output_json` is read, the output is no JSON", BY_CITY),
    Case("malformed", "the row lacks the reference", check(), item={}),
    Case("malformed", "the object has an unknown operation", check(operation="equals")),
    Case("hostile", "the output is a placeholder", check(), "{{item.reference}}"),
    Case("hostile", "the output holds NaN where JSON is read", BY_CITY, '{"city": NaN}'),
    Case("valid", "the reference, `fuzzy_match`", similar("fuzzy_match")),
    Case("wrong", "another text, `fuzzy_match`", similar("fuzzy_match"), "Oslo"),
    Case("wrong", "another text, `cosine`", similar("cosine"), "bbb"),
    Case("malformed", "a reference too short for `rouge_3`", similar("rouge_3")),
    Case("malformed", "an unknown metric", similar("levenshtein")),
    Case("hostile", "placeholders in the output, `bleu`", similar("bleu"), ESCAPES),
    Case("hostile", "the reference 20,000 times", similar("rouge_l"), "Paris " * 20_000),
    Case("valid", "the reference", code(EXACT)),
    Case("wrong", "another text", code(EXACT), "Rome"),
    Case("malformed", "the code raises for it", code("return float(sample['output_text'])")),
    Case("malformed", "the code returns NaN", code("return float('nan')")),
    Case("malformed", "the code returns nothing", code("pass")),
    Case("malformed", "the code does not parse", code("return (")),
    Case("hostile", "the output is a score, and the code `eval`s it", EVALUATES, "1.0"),
    Case(
        "hostile",
        "it runs for ever there",
        EVALUATES,
        "sum(1 for _ in iter(int, 1))",
    ),
    Case("hostile", "it ends the process there", EVALUATES, "__import__('os')._exit(0)"),
    Case("hostile", "it takes all memory there", EVALUATES, "len('x' * (1 << 40))"),
    Case("valid", "the model says 1", judge()),
    Case("wrong", "the model says 0", judge(), says=says(0)),
    Case(
        "malformed",
        "the model says no number",
        judge(),
        says=GradingReply(text="Well: 8/10", finish_reason="stop"),
    ),
    Case(
        "malformed",
        "the model refuses",
        judge(),
        says=GradingReply(text="", finish_reason="refusal"),
    ),
    Case(
        "malformed", "the model is cut", judge(), says=GradingReply(text="", finish_reason="length")
    ),
    Case("malformed", "a model that is not set up", judge(model="gpt-9")),
    Case("hostile", "the model says 1000", judge(), says=says(1000)),
    Case("hostile", "the model says NaN", judge(), says=says(float("nan"))),
    Case("hostile", "two results in one reply", judge(), says=TWICE),
    Case("valid", "a passing label", judge("label_model"), says=says("good")),
    Case("wrong", "another label", judge("label_model"), says=says("bad")),
    Case("malformed", "a label nobody asked for", judge("label_model"), says=says("fine")),
    Case("hostile", "both labels", judge("label_model"), says=says(["good", "bad"])),
    Case("valid", '`{"score": 0.85}`', HOSTED, answer=reply('{"score": 0.85}')),
    Case("wrong", '`{"score": 0}`', HOSTED, answer=reply('{"score": 0}')),
    Case("malformed", '`{"score": "high"}`', HOSTED, answer=reply('{"score": "high"}')),
    Case("malformed", "status 500", HOSTED, answer=reply(status=500)),
    Case("malformed", "a row over 1 MB", HOSTED, answer=reply(), item={"a": "x" * (1 << 20)}),
    Case("hostile", '`{"score": NaN}`', HOSTED, answer=reply('{"score": NaN}')),
    Case(
        "hostile", "the address of a cloud's metadata", {**HOSTED, "url": "http://169.254.169.254/"}
    ),
    Case("valid", "all parts score 1", multi("min(a, b)", a=check(), b=check(operation="ilike"))),
    Case("wrong", "one part scores 0", multi("min(a, b)", a=check(), b=check(reference="Rome"))),
    Case(
        "malformed",
        "one part has nothing to look at",
        multi("0.5 * a + 0.5 * b", a=BY_CITY, b=check()),
    ),
    Case(
        "malformed", "the same with `invalid_grade`", {**multi("a", a=BY_CITY), "invalid_grade": -1}
    ),
    Case("malformed", "an unknown name in the formula", multi("a + c", a=check())),
    Case("hostile", "a division by zero", multi("1 / a", a=check()), "Rome"),
    Case("hostile", "code in the formula", multi("__import__('os')", a=check())),
)


def rows(sandbox: Sandbox | None) -> list[str]:
    """Grade every case and return the lines of the table; without a sandbox, none of code."""

    async def all_rows() -> list[str]:
        cases = [case for case in CASES if sandbox or case.grader["type"] != "python"]
        return await asyncio.gather(*(row(case, sandbox) for case in cases))

    head = ["| grader | input | what it is | what comes of it |", "| --- | --- | --- | --- |"]
    return head + asyncio.run(all_rows())


async def row(case: Case, sandbox: Sandbox | None) -> str:
    async with AsyncExitStack() as open_servers:
        grader = dict(case.grader)
        if case.answer is not None:
            server = await open_servers.enter_async_context(serving(case.answer))
            grader["url"] = server.url
        models = {"judge": ScriptedGraderModel([case.says or says(1)])}
        backends = Backends(sandbox=sandbox, embedder=Letters(), models=models)
        try:
            run = await run_grader(grader, case.item, case.output, "trace", backends)
        except ConfigError as error:
            came = f"refused: {error}"
        else:
            came = outcome(run.reply())
    return f"| `{grader['type']}` | {case.kind} | {case.what} | {came} |"


def outcome(reply: Mapping[str, Any]) -> str:
    families = [name for name, value in reply["metadata"]["errors"].items() if value is True]
    score = "no score" if reply["reward"] is None else f"{reply['reward']:.3g}"
    return ", ".join([score, *(f"`{family}`" for family in families)])


@contextmanager
def this_machines_sandbox() -> Iterator[Sandbox | None]:
    """Lend a sandbox, None where none of the levels is to be had."""
    with TemporaryDirectory() as images:
        sandbox = DeferredSandbox(SandboxConfig(timeout_s=1.0), Path(images), unsafe=False)
        try:
            sandbox.open()
        except ConfigError:
            yield None
            return
        try:
            yield sandbox
        finally:
            asyncio.run(sandbox.close())


if __name__ == "__main__":
    with this_machines_sandbox() as opened:
        sys.stdout.write("\n".join(rows(opened)) + "\n")
