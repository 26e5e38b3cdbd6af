"""A job as it was written for the hosted service: upload, dry-run, train, watch, call the result.

    python examples/support_desk/server.py &        # your tools and your grader, port 8700
    agentrft serve &                                # prints a first token
    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=art-...
    python examples/openai_client/move_job.py

Only OPENAI_BASE_URL and OPENAI_API_KEY differ from the hosted service. A small base model solves none
of these tasks, so the job teaches it with demonstrations first and reinforces what that gives.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from openai import OpenAI

DESK = Path(__file__).parents[1] / "support_desk"


def main(arguments: list[str]) -> None:
    """Run every step and print what the server answers."""
    options = parsed(arguments)
    client = OpenAI()
    grader = {
        "type": "endpoint",
        "name": "desk",
        "url": f"{options.desk}/grade",
        "headers": {"Authorization": "Bearer desk-secret"},
        "rate_limit": 200,
        "pass_threshold": 0.999,
    }
    tools = [
        {
            "name": schema["function"]["name"],
            "server_url": f"{options.desk}/{schema['function']['name']}",
            "headers": {"Authorization": "Bearer desk-secret"},
        }
        for schema in tool_schemas()
    ]
    item = rows("train")[0]

    print("grader ", client.fine_tuning.alpha.graders.validate(grader=grader).grader)  # pyright: ignore[reportArgumentType]
    dry = client.fine_tuning.alpha.graders.run(
        grader=grader,  # pyright: ignore[reportArgumentType]
        item=item,
        model_sample="It cannot be done.",
        extra_body={"trace_id": "trace_dry"},
    )
    print("reward ", dry.reward)
    call = {
        "type": "function_call",
        "name": "get_order",
        "arguments": json.dumps({"order_id": item["shop"]["orders"][0]["id"]}),
        "item": item,
        "trace_id": "trace_dry",
        "id": "fc_1",
        "call_id": "call_1",
    }
    tool = next(tool for tool in tools if tool["name"] == "get_order")
    answer = client.post(
        "/fine_tuning/alpha/tool/run", body={**tool, **call}, cast_to=dict[str, Any]
    )
    print("tool   ", answer["output"])

    taught = follow(
        client,
        client.fine_tuning.jobs.create(
            model=options.model,
            training_file=uploaded(client, "demonstrations.jsonl", conversations()),
            method={
                "type": "supervised",
                "supervised": {
                    "hyperparameters": {
                        "batch_size": 4,
                        "n_epochs": options.epochs,
                        "learning_rate_multiplier": 2.0,
                    }
                },
            },
            suffix="taught",
            seed=options.seed,
        ).id,
    )
    reinforced = follow(
        client,
        client.fine_tuning.jobs.create(
            model=taught,
            training_file=uploaded(client, "train.jsonl", rows("train")[: options.rows]),
            validation_file=uploaded(client, "validation.jsonl", rows("validation")[:20]),
            method={  # pyright: ignore[reportArgumentType]
                "type": "reinforcement",
                "reinforcement": {
                    "tools": tools,
                    "grader": grader,
                    "response_format": None,
                    "max_episode_steps": 5,
                    "hyperparameters": {
                        "reasoning_effort": "low",
                        "n_epochs": 1,
                        "batch_size": 8,
                        "compute_multiplier": 1,
                        "eval_samples": 1,
                        "eval_interval": 5,
                    },
                },
            },
            suffix="desk",
            seed=options.seed,
        ).id,
    )
    said = client.chat.completions.create(
        model=reinforced,
        messages=item["messages"],
        tools=tool_schemas(),  # pyright: ignore[reportArgumentType]
        seed=1,
    )
    print("answer ", said.choices[0].message.to_json(indent=None))


def follow(client: OpenAI, job_id: str) -> str:
    """Print a job's events until it ends, list its checkpoints, return the model it made."""
    seen: set[str] = set()
    while True:
        job = client.fine_tuning.jobs.retrieve(job_id)
        page = client.fine_tuning.jobs.list_events(job_id, limit=100)
        for event in reversed(page.data):
            if event.id not in seen:
                print(f"{event.level:6} ", event.message)
                seen.add(event.id)
        if job.status in ("succeeded", "failed", "cancelled"):
            break
        time.sleep(1)
    for checkpoint in client.fine_tuning.jobs.checkpoints.list(job_id):
        print("step   ", checkpoint.step_number, checkpoint.fine_tuned_model_checkpoint)
    if job.fine_tuned_model is None:
        sys.exit(f"{job_id} {job.status}: {job.error and job.error.message}")
    return job.fine_tuned_model


def uploaded(client: OpenAI, name: str, lines: list[dict[str, Any]]) -> str:
    """Upload rows as a JSONL file and return its id."""
    body = "\n".join(json.dumps(line) for line in lines).encode()
    return client.files.create(file=(name, body), purpose="fine-tune").id


def tool_schemas() -> list[dict[str, Any]]:
    """Tools as rows and chats list them."""
    return json.loads((Path(__file__).parent / "tools.json").read_text())


def rows(split: str) -> list[dict[str, Any]]:
    """Rows of the desk, with the system text and the tools that the agent works with."""
    found = [json.loads(line) for line in (DESK / f"{split}.jsonl").read_text().splitlines()]
    system = {"role": "system", "content": (DESK / "system.txt").read_text().strip()}
    return [
        {**row, "messages": [system, *row["messages"]], "tools": tool_schemas()} for row in found
    ]


def conversations() -> list[dict[str, Any]]:
    """Demonstrations of an expert, in the form of supervised fine-tuning."""
    return [{key: row[key] for key in ("messages", "tools")} for row in rows("demonstrations")]


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--desk", default="http://127.0.0.1:8700", help="where server.py listens")
    parser.add_argument("--epochs", type=int, default=3, help="over the demonstrations")
    parser.add_argument("--rows", type=int, default=160, help="rows to reinforce on")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
