import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from live import Live, live_server
from served import bearer, error_of, served

from agentrft.core.errors import StoreError
from agentrft.core.job import FineTuningJob, JobStatus, SupervisedMethod
from agentrft.core.run import Event
from agentrft.inference.scripted import ScriptedChat, scripted_answer
from agentrft.server.events import frame
from agentrft.server.followers import Followers
from agentrft.store.home import Home


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    chat = ScriptedChat(lambda _request: scripted_answer("hello"))
    with live_server(tmp_path, chat, poll_s=0.02, heartbeat_s=0.2) as it:
        yield it


def submitted(home: Home, job_id: str = "ftjob-1", project: str = "default") -> str:
    job = FineTuningJob(
        id=job_id, project=project, model="smollm2-135m", base="smollm2-135m",
        method=SupervisedMethod(), training_file="file-1", seed=1, created_at=1.0,
    )  # fmt: skip
    return home.queue.submit(job, {}).id


def say(home: Home, job_id: str, *messages: str) -> None:
    home.store.append(job_id, [Event(level="info", message=m, created_at=2.0) for m in messages])


def end(home: Home) -> None:
    lease = home.queue.claim("worker", 60)
    assert lease is not None
    home.queue.finish(
        lease,
        replace(lease.job, status=JobStatus.FAILED, finished_at=3.0),
        [Event(level="error", message="last", created_at=3.0)],
    )


def url(live: Live, job_id: str, query: str = "stream=true") -> str:
    return f"{live.url}/v1/fine_tuning/jobs/{job_id}/events?{query}"


def messages(text: str) -> list[str]:
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return [json.loads(line)["message"] for line in data]


def test_events_are_listed_newest_first_in_slices(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        job = submitted(server.home)
        say(server.home, job, *map(str, range(30)))
        path = f"/v1/fine_tuning/jobs/{job}/events"
        first = server.client.get(path).json()
        assert [event["message"] for event in first["data"]] == [str(n) for n in range(29, 9, -1)]
        assert first["has_more"]
        event = first["data"][0]
        assert event["object"] == "fine_tuning.job.event"
        assert event["id"].startswith("ftevent-")
        assert (event["type"], event["level"], event["data"]) == ("message", "info", None)
        rest = server.client.get(path, params={"after": first["last_id"], "limit": 100}).json()
        assert rest["data"][0]["message"] == "9"
        assert not rest["has_more"]
        assert error_of(server.client.get(f"{path}?after=x"))["param"] == "after"


def test_metrics_events_carry_their_numbers(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        job = submitted(server.home)
        data = {"step": 1, "train_mean_reward": 0.5}
        metrics = Event(level="info", message="Step 1", created_at=2.0, data=data, kind="metrics")
        server.home.store.append(job, [metrics])
        event = server.client.get(f"/v1/fine_tuning/jobs/{job}/events").json()["data"][0]
        assert (event["type"], event["data"]) == ("metrics", data)


def test_a_follower_hears_everything_in_order_and_the_end(live: Live) -> None:
    async def follow() -> str:
        job = submitted(live.home)
        async with httpx2.AsyncClient(headers=bearer(live.token), timeout=20) as client:
            text, said = "", False
            async with client.stream("GET", url(live, job)) as reply:
                assert reply.headers["content-type"].startswith("text/event-stream")
                async for piece in reply.aiter_text():
                    text += piece
                    if not said:
                        said = True
                        say(live.home, job, "one", "two\nlines", "three \u2028 \U0001f600")
                        end(live.home)
        return text

    text = asyncio.run(follow())
    assert messages(text)[-4:] == ["one", "two\nlines", "three \u2028 \U0001f600", "last"]
    assert text.endswith("data: [DONE]\n\n")


def test_a_follower_that_comes_back_goes_on_where_it_was(live: Live) -> None:
    job = submitted(live.home)
    say(live.home, job, "one", "two", "three")
    end(live.home)
    listed = httpx2.get(url(live, job, "limit=100"), headers=bearer(live.token)).json()["data"]
    two = next(event["id"] for event in listed if event["message"] == "two")
    again = bearer(live.token) | {"last-event-id": two}
    assert messages(httpx2.get(url(live, job), headers=again).text) == ["three", "last"]
    whole = httpx2.get(url(live, job), headers=bearer(live.token)).text
    assert messages(whole) == [event["message"] for event in reversed(listed)]


def test_silence_is_filled_so_that_nobody_takes_the_stream_for_dead(live: Live) -> None:
    async def wait() -> bool:
        job = submitted(live.home)
        async with (
            httpx2.AsyncClient(headers=bearer(live.token), timeout=20) as client,
            client.stream("GET", url(live, job)) as reply,
        ):
            async for line in reply.aiter_lines():
                if line.startswith(": "):
                    return True
        return False

    assert asyncio.run(wait())


class CountingStore:
    """Counts how often events are asked for."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.asked = 0

    def events(self, run_id: str, *, limit: int) -> Any:
        self.asked += 1
        return self.home.store.events(run_id, limit=limit)

    def events_since(self, run_id: str, sequence: int, limit: int = 100) -> Any:
        self.asked += 1
        return self.home.store.events_since(run_id, sequence, limit)


def test_many_followers_share_one_reader_and_it_ends_with_them(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    home.access.create_project("default")
    store = CountingStore(home)
    job = submitted(home)
    say(home, job, *map(str, range(50)))
    followers = Followers(replace(home, store=store), 0.05, frame)  # pyright: ignore[reportArgumentType]

    async def heard() -> str:
        pieces = [piece async for piece in followers.follow(job, 0, 60.0)]
        return b"".join(pieces).decode()

    async def main() -> list[str]:
        followings = [asyncio.create_task(heard()) for _ in range(200)]
        await asyncio.sleep(0.2)
        end(home)
        texts = await asyncio.gather(*followings)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return texts

    texts = asyncio.run(main())
    assert len(set(texts)) == 1
    assert messages(texts[0])[-1] == "last"
    assert store.asked < 200
    home.close()


def test_a_late_follower_gets_what_the_reader_never_held(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    home.access.create_project("default")
    job = submitted(home)
    say(home, job, *map(str, range(2500)))
    followers = Followers(home, 0.01, frame)
    last = home.store.events(job, limit=1).items[0][0]

    async def main() -> tuple[list[str], list[str]]:
        async def follow(after: int) -> list[str]:
            pieces = [piece async for piece in followers.follow(job, after, 60.0)]
            return messages(b"".join(pieces).decode())

        first = asyncio.create_task(follow(last - 1))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(follow(0))
        await asyncio.sleep(0.1)
        end(home)
        return await first, await second

    early, late = asyncio.run(main())
    assert early == ["2499", "last"]
    assert late[-2501:] == [*map(str, range(2500)), "last"]
    home.close()


def test_a_follower_who_waits_for_an_event_far_away_holds_up_nobody(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    home.access.create_project("default")
    job = submitted(home)
    followers = Followers(home, 0.01, frame)

    heard: dict[str, list[str]] = {"far": [], "near": []}

    async def hear(name: str, after: int) -> None:
        async for piece in followers.follow(job, after, 60.0):
            heard[name] += messages(piece.decode())
            if "news" in heard[name]:
                return

    async def main() -> None:
        far = asyncio.create_task(hear("far", 10**9))
        await asyncio.sleep(0.1)
        near = asyncio.create_task(hear("near", 0))
        await asyncio.sleep(0.1)
        say(home, job, "news")
        async with asyncio.timeout(20):
            await near
        far.cancel()

    asyncio.run(main())
    assert heard["near"][-1] == "news"
    assert heard["far"] == []
    home.close()


def test_a_reader_that_fails_ends_its_streams(tmp_path: Path) -> None:
    home = Home.open(tmp_path)

    async def main() -> None:
        async for _ in Followers(home, 0.01, frame).follow("ftjob-none", 0, 5.0):
            pass

    with pytest.raises(StoreError):
        asyncio.run(main())
    home.close()


def test_a_job_of_another_project_cannot_be_followed(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        server.home.access.create_project("other")
        job = submitted(server.home, project="other")
        for query in ("", "?stream=true"):
            reply = server.client.get(f"/v1/fine_tuning/jobs/{job}/events{query}")
            assert reply.status_code == 404
