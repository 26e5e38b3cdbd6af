"""vLLM's protocol without a model: in the test's own process, or as the program that is started.

Token n of every answer is `n % 7 + 10`, and its log-probability the version of the adapter asked for,
in hundredths. Behaves as the fields of `Fake` say.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

BASE = "/models/tiny"


@dataclass
class Fake:
    raw_logprobs: bool = False
    stops_at: int | None = None
    """A token that ends answers although nobody asked for it."""
    piece_s: float = 0.0
    """Before each piece."""
    silent_after: int | None = None
    """Pieces, then nothing for ever."""
    breaks_after: int | None = None
    error_after: int | None = None
    logprob: float | None = -0.5
    context_tokens: int = 64
    key: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    adapters: dict[str, str] = field(default_factory=dict[str, str])
    unloaded: list[str] = field(default_factory=list[str])
    seen: list[frozenset[str]] = field(default_factory=list[frozenset[str]])
    """Files in the folder of each adapter that was loaded."""
    aborted: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", lambda _: Response()),
                Route("/v1/models", self.models),
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self.unload, methods=["POST"]),
            ]
        )

    async def models(self, request: Request) -> Response:
        if request.headers.get("authorization", "") != (self.key and f"Bearer {self.key}"):
            return JSONResponse({"error": "Unauthorized"}, 401)
        cards = [{"id": name, "parent": BASE} for name in self.adapters]
        return JSONResponse({"data": [*cards, {"id": BASE, "max_model_len": self.context_tokens}]})

    async def load(self, request: Request) -> Response:
        asked = await request.json()
        files = files_of(asked["lora_path"])
        if "adapter_model.safetensors" not in files:
            return JSONResponse({"error": {"message": "no adapter there"}}, 500)
        self.seen.append(files)
        self.adapters[asked["lora_name"]] = asked["lora_path"]
        return PlainTextResponse("Success")

    async def unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        del self.adapters[name]
        self.unloaded.append(name)
        return PlainTextResponse("Success")

    async def completions(self, request: Request) -> Response:
        asked = await request.json()
        if asked["model"] not in (BASE, *self.adapters):
            return JSONResponse({"error": {"message": f"no model {asked['model']}"}}, 404)
        if allowed := asked.get("allowed_token_ids"):
            logprob = -3.0 if self.raw_logprobs else 0.0
            choice = {"token_ids": allowed, "logprobs": {"token_logprobs": [logprob]}}
            return JSONResponse({"choices": [choice]})
        self.requests.append(asked)
        if "prompt_logprobs" in asked:
            return JSONResponse({"choices": [self.scored(ids) for ids in asked["prompt"]]})
        if asked["max_tokens"] > self.context_tokens:
            return JSONResponse({"error": {"message": "max_tokens is too large"}}, 400)
        return StreamingResponse(self.stream(asked), media_type="text/event-stream")

    def scored(self, ids: list[int]) -> dict[str, Any]:
        rows = [{str(token): {"logprob": -token / 10, "rank": 1}} for token in ids]
        return {"prompt_logprobs": [None, *rows[1:]]}

    async def stream(self, asked: dict[str, Any]) -> AsyncIterator[str]:
        try:
            for number in range(asked["max_tokens"]):
                await asyncio.sleep(3600 if number == self.silent_after else self.piece_s)
                if number == self.breaks_after:
                    raise ConnectionResetError
                if number == self.error_after:
                    yield _event({"error": {"message": "out of memory", "code": 500}})
                    return
                token = number % 7 + 10
                stops = token == self.stops_at or token in asked["stop_token_ids"]
                last = number == asked["max_tokens"] - 1
                choice = {
                    "token_ids": [token],
                    "logprobs": {"token_logprobs": [self.logprob]},
                    "finish_reason": "stop" if stops else "length" if last else None,
                }
                yield _event({"choices": [choice]})
                if stops:
                    break
            cached = {"prompt_tokens_details": {"cached_tokens": 3}}
            yield _event({"choices": [], "usage": cached})
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.aborted += 1
            raise


def files_of(folder: str) -> frozenset[str]:
    return frozenset(path.name for path in Path(folder).glob("*"))


def _event(piece: dict[str, Any]) -> str:
    return f"data: {json.dumps(piece)}\n\n"


@asynccontextmanager
async def serving(fake: Fake) -> AsyncIterator[Fake]:
    config = uvicorn.Config(fake.app(), port=0, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - the server has no such event
        await asyncio.sleep(0.01)
    fake.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        server.should_exit = True
        await task


if __name__ == "__main__":  # as `vllm serve FOLDER --uds=PATH ...`
    words = (word.removeprefix("--").partition("=") for word in sys.argv[3:])
    options = {name: value for name, _, value in words}
    sys.stdout.write(f"{json.dumps(sys.argv[1:])}\n")
    sys.stdout.flush()
    if "refuse" in options:
        sys.exit("ValueError: this model is not supported")
    context = int(options["max-model-len"])
    uvicorn.run(Fake(context_tokens=context).app(), uds=options["uds"], log_level="critical")
