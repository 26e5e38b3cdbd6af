"""What clients that watch a server read, for locust; `load.py` starts it at a fixed rate."""

import json
import os
import random

from locust import FastHttpUser, task

RATE = float(os.environ["LOAD_RATE"])
"""Requests per second of all users together."""
IDS: dict[str, list[str]] = json.loads(os.environ["LOAD_IDS"])
"""What there is to look at: jobs, models, files."""


def every_s(user: "Reader") -> float:
    """Return how often one user asks, so that all together keep the rate."""
    return user.environment.parsed_options.num_users / RATE


def at_random(user: "Reader") -> float:
    """Wait for about the user's share of the rate; users in step would come in bursts."""
    return random.uniform(0, 2 * every_s(user))


class Reader(FastHttpUser):
    """Looks at jobs as a dashboard, a notebook and a script would."""

    wait_time = at_random

    def on_start(self) -> None:
        """Say who asks."""
        self.client.auth_header = f"Bearer {os.environ['LOAD_TOKEN']}"

    @task(6)
    def retrieve_a_job(self) -> None:
        self._read("/v1/fine_tuning/jobs/{id}", "jobs")

    @task(4)
    def list_its_events(self) -> None:
        self._read("/v1/fine_tuning/jobs/{id}/events", "jobs")

    @task(2)
    def list_its_checkpoints(self) -> None:
        self._read("/v1/fine_tuning/jobs/{id}/checkpoints", "jobs")

    @task(2)
    def list_jobs(self) -> None:
        self.client.get("/v1/fine_tuning/jobs")

    @task
    def list_models(self) -> None:
        self.client.get("/v1/models")

    @task
    def retrieve_a_model(self) -> None:
        self._read("/v1/models/{id}", "models")

    @task
    def list_files(self) -> None:
        self.client.get("/v1/files")

    @task
    def retrieve_a_file(self) -> None:
        self._read("/v1/files/{id}", "files")

    def _read(self, path: str, kind: str) -> None:
        self.client.get(path.format(id=random.choice(IDS[kind])), name=path)
