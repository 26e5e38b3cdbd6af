"""What a user of the official client does with a running server; the first surprise ends it.

    python client_scenario.py sync|async TOOLS_URL FINE_TUNED_MODEL

Run with examples/openai_client and one of the supported `openai` on the path; OPENAI_BASE_URL and
OPENAI_API_KEY say where and who, OTHER_API_KEY is a token of another project, READ_API_KEY may
only read.
"""

import asyncio
import inspect
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
from move_job import rows, tool_schemas

DEADLINE_S = 420.0


async def settled(value: Any) -> Any:
    """Await what the asynchronous client returns; pass on what the other one does."""
    return await value if inspect.isawaitable(value) else value


async def each(value: Any) -> AsyncIterator[Any]:
    """Walk through a stream or all pages of either client."""
    if hasattr(value, "__aiter__"):
        async for one in value:
            yield one
    else:
        for one in value:
            yield one


class Scenario:
    """One client, every route."""

    def __init__(self, kind: str, desk: str, model: str) -> None:
        self.make = openai.AsyncOpenAI if kind == "async" else openai.OpenAI
        self.client: Any = self.make(max_retries=0)
        self.kind, self.desk, self.model = kind, desk, model
        headers = {"Authorization": "Bearer desk-secret"}
        self.grader = {"type": "endpoint", "url": f"{desk}/grade", "headers": headers}
        self.tools = [
            {"name": name, "server_url": f"{desk}/{name}", "headers": headers}
            for name in (schema["function"]["name"] for schema in tool_schemas())
        ]

    async def run(self) -> None:
        """Everything, in the order a user would."""
        await self.files()
        await self.dry_runs()
        await self.chats()
        job_id = await self.create()
        await self.pause_and_resume(job_id)
        await self.succeeded(job_id)
        if self.kind == "sync":  # what differs between the kinds is above
            await self.imitation_and_preference()
        await self.cancel()
        await self.refusals(job_id)

    async def upload(self, name: str, lines: list[dict[str, Any]]) -> str:
        """Upload rows; return the file's id."""
        body = "\n".join(json.dumps(line) for line in lines).encode()
        return (await settled(self.client.files.create(file=(name, body), purpose="fine-tune"))).id

    async def files(self) -> None:
        """Files are stored, listed, read back and deleted."""
        file_id = await self.upload("some.jsonl", rows("train")[:10])
        found = await settled(self.client.files.retrieve(file_id))
        assert (found.object, found.purpose, found.status) == ("file", "fine-tune", "processed")
        assert file_id in [one.id async for one in each(await listed(self.client.files.list()))]
        content = await settled(self.client.files.content(file_id))
        assert json.loads(content.text.splitlines()[0])["id"] == rows("train")[0]["id"]
        assert (await settled(self.client.files.delete(file_id))).deleted
        await refused(lambda: self.client.files.retrieve(file_id), openai.NotFoundError)
        error = await refused(
            lambda: self.client.files.create(file=("x.jsonl", b'{"a": 1}\n{'), purpose="fine-tune"),
            openai.BadRequestError,
        )
        assert "line 2" in str(error)

    async def dry_runs(self) -> None:
        """Graders and tools answer as in training."""
        alpha, item = self.client.fine_tuning.alpha, rows("train")[0]
        check = {
            "type": "string_check",
            "name": "said",
            "input": "{{sample.output_text}}",
            "reference": "{{item.id}}",
            "operation": "eq",
        }
        found = await settled(alpha.graders.validate(grader=check))
        assert found.grader.name == "said"
        multi = {"type": "multi", "graders": {"a": check}, "calculate_output": "2 * a"}
        graded = await settled(alpha.graders.run(grader=multi, item=item, model_sample=item["id"]))
        assert graded.reward == 2.0
        assert graded.metadata.errors.other_error is False
        graded = await settled(
            alpha.graders.run(
                grader=self.grader,
                item=item,
                model_sample="no",
                extra_body={"trace_id": "trace_dry"},
            )
        )
        assert graded.reward == 0.0
        error = await refused(
            lambda: alpha.graders.validate(grader={"type": "lambda", "name": "l"}),
            openai.BadRequestError,
        )
        assert "endpoint" in str(error)
        order_id = item["shop"]["orders"][0]["id"]
        called = {
            **next(tool for tool in self.tools if tool["name"] == "get_order"),
            "type": "function_call",
            "arguments": json.dumps({"order_id": order_id}),
            "item": item,
            "trace_id": "trace_dry",
            "id": "fc_1",
            "call_id": "call_1",
        }
        answer = await settled(
            self.client.post("/fine_tuning/alpha/tool/run", body=called, cast_to=dict[str, Any])
        )
        assert answer["output"].startswith("status=")
        assert answer["call_id"] == "call_1"

    async def chats(self) -> None:
        """Base and fine-tuned models answer, streamed and not, with tools and with responses."""
        item = rows("train")[1]
        create = self.client.chat.completions.create
        settings = {"model": self.model, "messages": item["messages"], "seed": 3}
        settings |= {"tools": tool_schemas(), "max_tokens": 60, "temperature": 0.0}
        whole = await settled(create(**settings, tool_choice="required"))
        (call,) = whole.choices[0].message.tool_calls
        assert call.function.name in [tool["name"] for tool in self.tools]
        assert whole.choices[0].finish_reason == "tool_calls"
        assert whole.usage.completion_tokens > 0
        name, arguments = "", ""
        stream = await settled(create(**settings, tool_choice="required", stream=True))
        async for chunk in each(stream):
            for delta in chunk.choices[0].delta.tool_calls or () if chunk.choices else ():
                name += delta.function.name or ""
                arguments += delta.function.arguments or ""
        assert (name, arguments) == (call.function.name, call.function.arguments)
        plain = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "Say hello."}]}
        several = await settled(create(**plain, n=3, seed=5, max_tokens=8, logprobs=True))
        assert len(several.choices) == 3
        for choice in several.choices:
            assert choice.logprobs.content[0].logprob <= 0.0
        answer = await settled(
            self.client.responses.create(
                model="smollm2-135m", input="Say hello.", max_output_tokens=8, store=False
            )
        )
        assert answer.output_text

    async def create(self) -> str:
        """Create a reinforcement job as one is written for the hosted service."""
        method = {
            "type": "reinforcement",
            "reinforcement": {
                "tools": self.tools,
                "grader": self.grader,
                "response_format": None,
                "max_episode_steps": 5,
                "hyperparameters": {
                    "reasoning_effort": "low",
                    "n_epochs": 1,
                    "batch_size": 4,
                    "compute_multiplier": 0.5,
                    "eval_interval": 2,
                    "eval_samples": 1,
                },
            },
        }
        job = await settled(
            self.client.fine_tuning.jobs.create(
                model=self.model,
                training_file=await self.upload("train.jsonl", rows("train")[:12]),
                validation_file=await self.upload("validation.jsonl", rows("validation")[:4]),
                method=method,
                suffix="scenario",
                seed=42,
                metadata={"who": "scenario", "preflight": "warn"},
            )
        )
        assert job.object == "fine_tuning.job"
        assert job.status == "validating_files"
        assert job.seed == 42
        sent = job.to_dict()["method"]["reinforcement"]
        assert "desk-secret" not in json.dumps(job.to_dict())
        assert sent["max_episode_steps"] == 5
        return job.id

    async def imitation_and_preference(self) -> None:
        """Demonstrations are imitated; pairs are learned from with the model that came of it."""
        told = [
            {
                "messages": [
                    {"role": "user", "content": f"Where is W{number}?"},
                    {"role": "assistant", "content": f"W{number} is on its way."},
                ]
            }
            for number in range(10)
        ]
        taught = await self.learned(
            "supervised", told, model="smollm2-135m", figure="train_mean_token_accuracy"
        )
        pairs = [
            {
                "input": {"messages": row["messages"][:1]},
                "preferred_output": row["messages"][1:],
                "non_preferred_output": [{"role": "assistant", "content": "I do not know."}],
            }
            for row in told
        ]
        await self.learned("dpo", pairs, model=taught, figure="train_margin")

    async def learned(self, method: str, lines: list[Any], *, model: str, figure: str) -> str:
        """Run a job of two epochs to its end and call what came of it."""
        file_id = await self.upload(f"{method}.jsonl", lines)
        settings = {"hyperparameters": {"n_epochs": 2, "batch_size": 10}}
        job = await settled(
            self.client.fine_tuning.jobs.create(
                model=model,
                training_file=file_id,
                validation_file=file_id,
                method={"type": method, method: settings},
                seed=1,
            )
        )
        job = await self.until(job.id, "succeeded")
        assert job.method.type == method
        metrics = [event.data for event in await self.events(job.id) if event.type == "metrics"]
        assert [data["step"] for data in metrics] == [1, 2]
        assert metrics[1]["train_loss"] < metrics[0]["train_loss"]
        assert metrics[1]["full_valid_loss"] < metrics[0]["full_valid_loss"]
        checkpoints = await listed(self.client.fine_tuning.jobs.checkpoints.list(job.id))
        offered = [one async for one in each(checkpoints)]
        assert {one.step_number for one in offered} == {1, 2}
        assert getattr(offered[0].metrics, figure) is not None
        table = await settled(self.client.files.content(job.result_files[0]))
        header, *lines_of_steps = table.text.splitlines()
        assert figure in header.split(",")
        assert len(lines_of_steps) == 2
        said = await settled(
            self.client.chat.completions.create(
                model=job.fine_tuned_model,
                messages=[{"role": "user", "content": "Hi"}],
                max_tokens=4,
            )
        )
        assert said.choices[0].finish_reason in ("stop", "length")
        return job.fine_tuned_model

    async def until(self, job_id: str, *statuses: str) -> Any:
        """Poll a job until it has one of these statuses."""
        began = time.monotonic()
        while True:
            job = await settled(self.client.fine_tuning.jobs.retrieve(job_id))
            if job.status in statuses:
                return job
            assert job.status not in ("failed", "cancelled", "succeeded"), job.to_dict()
            assert time.monotonic() - began < DEADLINE_S, f"{job_id} stays {job.status}"
            await asyncio.sleep(0.5)

    async def events(self, job_id: str) -> list[Any]:
        """All events, oldest first."""
        found = await listed(self.client.fine_tuning.jobs.list_events(job_id, limit=5))
        return [event async for event in each(found)][::-1]

    async def pause_and_resume(self, job_id: str) -> None:
        """Pause after the first step; what was learned so far can be called; go on."""
        await self.until(job_id, "running")
        began = time.monotonic()
        while not any(event.type == "metrics" for event in await self.events(job_id)):
            assert time.monotonic() - began < DEADLINE_S
            await asyncio.sleep(0.5)
        await settled(self.client.fine_tuning.jobs.pause(job_id))
        await self.until(job_id, "paused")
        checkpoints = self.client.fine_tuning.jobs.checkpoints.list(job_id)
        snapshot = await anext(each(await listed(checkpoints)))
        await settled(
            self.client.chat.completions.create(
                model=snapshot.fine_tuned_model_checkpoint,
                messages=[{"role": "user", "content": "Hi"}],
                max_tokens=4,
            )
        )
        await settled(self.client.fine_tuning.jobs.resume(job_id))

    async def succeeded(self, job_id: str) -> None:
        """The job ends well; events, checkpoints, results and the model are there."""
        job = await self.until(job_id, "succeeded")
        assert job.fine_tuned_model.startswith("ft:")
        assert job.trained_tokens > 0
        events = await self.events(job_id)
        metrics = [event.data for event in events if event.type == "metrics"]
        assert [data["step"] for data in metrics] == [1, 2, 3]
        assert all(
            data["train_mean_reward"] == data["scores"]["train_reward_mean"] for data in metrics
        )
        assert metrics[1]["full_valid_mean_reward"] is not None
        assert any("New fine-tuned model created" in event.message for event in events)
        checkpoints = await listed(self.client.fine_tuning.jobs.checkpoints.list(job_id))
        found = [one async for one in each(checkpoints)]
        assert 1 <= len(found) <= 4
        assert all(":ckpt-step-" in one.fine_tuned_model_checkpoint for one in found)
        table = await settled(self.client.files.content(job.result_files[0]))
        assert table.text.splitlines()[0].startswith("step,")
        assert len(table.text.splitlines()) == 4
        said = await settled(
            self.client.chat.completions.create(
                model=job.fine_tuned_model,
                messages=rows("train")[0]["messages"],
                tools=tool_schemas(),
                max_tokens=60,
            )
        )
        assert said.choices[0].finish_reason in ("stop", "tool_calls", "length")
        assert job.fine_tuned_model in [
            model.id async for model in each(await listed(self.client.models.list()))
        ]
        await self.permissions(found[0].fine_tuned_model_checkpoint)

    async def permissions(self, checkpoint: str) -> None:
        """Another project may call a checkpoint as long as it is permitted to."""
        other = self.make(api_key=os.environ["OTHER_API_KEY"], max_retries=0)
        await refused(lambda: other.models.retrieve(checkpoint), openai.NotFoundError)
        routes = self.client.fine_tuning.checkpoints.permissions
        granted = await settled(routes.create(checkpoint, project_ids=["other"]))
        permission = granted.data[0] if hasattr(granted, "data") else granted
        assert (await settled(other.models.retrieve(checkpoint))).id == checkpoint
        path = f"/fine_tuning/checkpoints/{checkpoint}/permissions/{permission.id}"
        gone = await settled(self.client.delete(path, cast_to=dict[str, Any]))
        assert gone["deleted"]
        await refused(lambda: other.models.retrieve(checkpoint), openai.NotFoundError)

    async def cancel(self) -> None:
        """A job is cancelled and cannot be resumed."""
        job_id = await self.create()
        await settled(self.client.fine_tuning.jobs.cancel(job_id))
        await self.until(job_id, "cancelled")
        await refused(lambda: self.client.fine_tuning.jobs.resume(job_id), openai.APIStatusError)

    async def refusals(self, job_id: str) -> None:
        """What is wrong comes back as the client's own exceptions, with the path."""
        jobs = self.client.fine_tuning.jobs
        await refused(lambda: jobs.retrieve("ftjob-none"), openai.NotFoundError)
        wrong_key = self.make(api_key="wrong", max_retries=0)
        await refused(wrong_key.models.list, openai.AuthenticationError)
        reader = self.make(api_key=os.environ["READ_API_KEY"], max_retries=0)
        assert (await settled(reader.fine_tuning.jobs.retrieve(job_id))).id == job_id
        await refused(lambda: reader.fine_tuning.jobs.cancel(job_id), openai.PermissionDeniedError)
        other = self.make(api_key=os.environ["OTHER_API_KEY"], max_retries=0)
        await refused(lambda: other.fine_tuning.jobs.retrieve(job_id), openai.NotFoundError)
        training_file = await self.upload("train.jsonl", rows("train")[:10])
        error = await refused(
            lambda: jobs.create(
                model=self.model,
                training_file=training_file,
                method={
                    "type": "reinforcement",
                    "reinforcement": {"grader": {"type": "string_check"}, "wrong": 1},
                },
            ),
            openai.BadRequestError,
        )
        assert "method.reinforcement.wrong" in str(error)
        error = await refused(
            lambda: jobs.create(model="no-such-model", training_file=training_file),
            openai.APIStatusError,
        )
        assert "no-such-model" in str(error)
        found = [
            job.id async for job in each(await listed(jobs.list(metadata={"who": "scenario"})))
        ]
        assert job_id in found


async def listed(value: Any) -> Any:
    """Return a page of either client: the asynchronous paginator is awaitable and iterable."""
    return value if hasattr(value, "__aiter__") else await settled(value)


async def refused(call: Callable[[], Any], kind: type[Exception]) -> Exception:
    """Expect one of the client's typed exceptions."""
    try:
        await settled(call())
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


if __name__ == "__main__":
    asyncio.run(Scenario(*sys.argv[1:]).run())
    sys.stdout.write(f"openai {openai.__version__}: all as expected\n")
