"""Talking to the agent: rollouts whose user is a person, with the real tools; nothing is stored."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from agentrft.core.errors import UserError
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Message, Task
from agentrft.core.trajectory import Turn
from agentrft.graders.fixed import FixedGrader
from agentrft.inference.models import resolve
from agentrft.jobs.project import Project
from agentrft.jobs.publication import Publisher
from agentrft.jobs.serving import ServedModel
from agentrft.rollout.episode import RolloutSetup, run_episode
from agentrft.rollout.guards import seen
from agentrft.rollout.harness import Harness
from agentrft.store.home import Home

Read = Callable[[], Awaitable[str | None]]
"""Read the user's next line; None at the end."""
Show = Callable[[str], None]
COMMANDS = "/reset begins anew, /tools lists the tools, /quit ends"


def chosen_task(project: Project, task_id: str) -> Task:
    """Return the task of this id, or the first one that is held out. Raises UserError."""
    if not task_id:
        return project.examples()[0]
    for split in ("train", project.validation_rows):
        for task in (*project.examples(), *project.tasks(split)):
            if task.id == task_id:
                return task
    raise UserError(f"{project.folder}: no row of its data has the id {task_id!r}")


async def chat_setup(model: ServedModel, home: Home, checkpoint: Path | None) -> RolloutSetup:
    """Return rollouts that nobody grades, with a checkpoint's weights once these are proven."""
    setup = replace(model.setup(), grader=FixedGrader(lambda task, trajectory: 0.0))
    if checkpoint is None:
        return setup
    from agentrft.inference.embedded.checkpoint import read_checkpoint

    config = model.project.config
    publisher = Publisher(model.sampler, bound=config.methods.reinforcement.identity_bound)
    weights = read_checkpoint(checkpoint, resolve(config.model, cache=home.models).folder)
    policy, _ = await publisher.load(weights, setup.policy)
    return replace(setup, policy=policy)


class Chat:
    """Conversations about one task, each with an environment of its own; the `User` of all."""

    def __init__(
        self, setup: RolloutSetup, project: Project, task: Task, *, read: Read, show: Show
    ) -> None:
        self._setup = replace(setup, user=self)
        self._tools = Harness(setup.policy.spec).session(task, project.offered(task)).tools
        self._task = task
        self._read, self._show = read, show
        self._talking = self._over = False
        self._seen = 0
        """Turns of this conversation that were shown."""

    async def run(self) -> None:
        """Talk until the user ends it."""
        number = 0
        while not self._over:
            first = await self.says()
            if first is None:
                continue
            told = [one for one in self._task.messages if one.role in ("system", "developer")]
            task = replace(self._task, messages=(*told, first))
            self._talking, self._seen = True, 0
            graded = await run_episode(self._setup, task, seed=derive_seed("chat", number))
            for turn in graded.trajectory.turns[self._seen :]:
                self.sees(turn)  # a tool that failed had no result to show it with
            self._talking, number = False, number + 1
            if failure := graded.trajectory.failure:
                self._show(f"[ended by {failure.where}: {failure.message}]")
            if not self._over:
                self._show("[a new conversation; the environment is as at the beginning]")

    def sees(self, turn: Turn) -> None:
        """Show what the agent said and did, and what it was answered."""
        self._seen += 1
        if turn.message.content:
            self._show(f"agent> {turn.message.content}")
        for call in turn.message.tool_calls:
            self._show(f"  call   {call.name} {call.arguments}")
        for failure in turn.parse_failures:
            self._show(f"  call   {failure.raw}")
        for result in turn.tool_results:
            self._show(f"  result {seen(result)}")

    async def says(self) -> Message | None:
        """Read the user's next message; None ends the conversation."""
        while (line := await self._read()) is not None:
            match line.strip():
                case "/quit":
                    break
                case "/reset":
                    return None
                case "/tools":
                    for tool in self._tools:
                        self._show(f"  {tool.name}: {tool.description}")
                case "" if not self._talking and self._request:
                    return self._request
                case "":
                    continue
                case text if text.startswith("/"):
                    self._show(COMMANDS)
                case text:
                    return Message(role="user", content=text)
        self._over = True
        return None

    @property
    def _request(self) -> Message | None:
        """What the row itself asks."""
        asked = [message for message in self._task.messages if message.role == "user"]
        return asked[-1] if asked else None
