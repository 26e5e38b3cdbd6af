"""One fine-tuning job in a worker's hands: checked and given back, or trained to its end.

Nothing here is lost with the process: what counts is in the store after each step, and whoever
leases the job next goes on from there.
"""

import asyncio
import logging
import shutil
import time
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, cast

from agentrft.audit.probe import Subject
from agentrft.audit.references import find_answers
from agentrft.core.config import AuditConfig
from agentrft.core.errors import (
    AgentRFTError,
    ConfigError,
    DataError,
    LeaseLostError,
    ModelError,
    StoreError,
    UserError,
    boundary,
)
from agentrft.core.job import (
    FineTuningMethod,
    JobError,
    JobStatus,
    Lease,
    PreferenceMethod,
    ReinforcementMethod,
    SupervisedMethod,
)
from agentrft.core.policy import Checkpoint
from agentrft.core.protocols import Trainer
from agentrft.core.run import Event, RunStatus, StepMetrics
from agentrft.core.sample import Sample
from agentrft.core.training_config import MonitorAction, TrainerConfig
from agentrft.graders.backends import Backends
from agentrft.inference.models import describe
from agentrft.jobs.audit import GraderRefusedError, gate
from agentrft.jobs.checkpoints import Retention
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.evaluation import Measurement, stored_records
from agentrft.jobs.hyperparameters import CONTEXT_TOKENS, Resolved, resolve
from agentrft.jobs.job_follower import JobFollower, offer_checkpoint, register
from agentrft.jobs.job_preflight import (
    Preflight,
    check_preference,
    check_reinforcement,
    check_supervised,
)
from agentrft.jobs.monitoring import MonitorAlarmError
from agentrft.jobs.pairs import comparable
from agentrft.jobs.preference import fitting_pairs
from agentrft.jobs.preflight import STAGE as PREFLIGHT
from agentrft.jobs.progress import SilentProgress
from agentrft.jobs.project import Project
from agentrft.jobs.reinforcement import StormError, reinforce, serving
from agentrft.jobs.serving import OpenModel, ServedModel, first_step
from agentrft.jobs.step_report import result_file
from agentrft.jobs.supervised import HeldOut, learn, rendered
from agentrft.jobs.tuning_project import JobFiles, tuning_project
from agentrft.jobs.validation import task_sets
from agentrft.measure.job_preflight import only_warns
from agentrft.store.datasets import read_demonstrations, read_preferences
from agentrft.store.errors import NotFoundError
from agentrft.store.files import StoredFile
from agentrft.store.home import Home
from agentrft.store.rows import check_rows
from agentrft.training.credit import LossName

_log = logging.getLogger(__name__)

BEST = 3
"""Checkpoints offered as models beside the last."""


class JobFailedError(AgentRFTError):
    """The job cannot go on, and this is what its user is told."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


class Interruption(IntEnum):
    """Why a worker must let go of a job; the greater one wins."""

    LEAVE = 1
    """The worker was asked to end."""
    PAUSE = 2
    CANCEL = 3
    LOST = 4
    """Another worker has the job, so nothing may be written any more."""


class LeasedJob:
    """A job while this worker holds it."""

    def __init__(
        self,
        home: Home,
        lease: Lease,
        *,
        open_model: OpenModel,
        backends: Backends,
        audit: AuditConfig,
    ) -> None:
        self._home, self._lease = home.fenced(lease), lease
        self._open_model, self._audit_config = open_model, audit
        self._backends = replace(backends, owner=lease.job.project)
        self._record = lease.job
        self._reason: Interruption | None = None
        self._work = Job(
            home=self._home,
            run=home.store.run(lease.job.id),
            progress=SilentProgress(),
            stop=asyncio.Event(),
        )

    def interrupt(self, reason: Interruption) -> None:
        """Ask to let go soon: after the rollouts or the step that is under way."""
        self._reason = max(reason, self._reason or reason)
        if self._reason in (Interruption.CANCEL, Interruption.LOST):
            self._work.abandon()
        self._work.stop.set()

    async def carry_out(self) -> None:
        """Do what the job's status asks for and give the lease back.

        Raises LeaseLostError if another worker has it, StoreError if even that cannot be written.
        """
        try:
            with boundary(AgentRFTError, f"job {self._record.id}"):
                if self._record.validated:
                    await self._train()
                else:
                    await self._validate()
        except LeaseLostError:
            raise
        except Stopped:
            self._let_go()
        except StormError as error:
            self._pause(f"Fine-tuning job paused: {error}", _failing(error))
        except MonitorAlarmError as error:
            told = JobError(code="monitor_alarm", message=str(error))
            self._pause(f"Fine-tuning job paused: {error}", told)
        except StoreError as error:
            # A full disk or a database that is away passes; what is committed must not be lost to it.
            told = JobError(code="storage_failing", message=str(error))
            self._pause(f"Fine-tuning job paused: {error}", told)
        except AgentRFTError as error:
            self._fail(error)

    async def _validate(self) -> None:
        project, resolved, files = self._opened()
        self._record = replace(self._record, hyperparameters=resolved.shown)
        with self._open_model(project, self._home, trained=True) as model:
            preflight = await self._checked(model, resolved, files)
        self._record = replace(self._record, preflight=preflight.numbers)
        for warning in preflight.warnings:
            self._work.event(warning, level="warn")
        if preflight.error is not None:
            raise JobFailedError(preflight.error)
        if isinstance(self._record.method, ReinforcementMethod):
            await self._audit(project, self._record.method)
        self._work.event("Files validated, moving job to queued state")
        self._home.queue.release(
            self._lease, replace(self._record, status=JobStatus.QUEUED, validated=True)
        )

    async def _checked(self, model: ServedModel, resolved: Resolved, files: JobFiles) -> Preflight:
        project, method = model.project, self._record.method
        warn_only = only_warns(self._record.metadata)
        if isinstance(method, ReinforcementMethod):
            if files.validation is None and method.gold_grader is None:
                self._work.event(
                    "No validation_file: nothing is validated, and the newest checkpoints are kept "
                    "instead of the best"
                )
            return await check_reinforcement(
                self._work,
                await serving(self._work, model, self._start),
                train=project.tasks("train"),
                validation=project.tasks("validation") if files.validation else (),
                tools=[tool.name for tool in method.tools],
                grader=method.grader,
                temperature=resolved.methods.reinforcement.temperature,
                concurrency=model.concurrency,
                warn_only=warn_only,
            )
        unseen, limit = files.validation, project.config.limits.max_context_tokens
        self._held_out(model, resolved, files)
        if isinstance(method, PreferenceMethod):
            pairs = project.preferences()
            return check_preference(
                self._work,
                train=pairs,
                validation=read_preferences(unseen, numbered=True) if unseen else (),
                pairs=comparable(pairs, project, model.renderer),
                limit_tokens=limit,
                warn_only=warn_only,
            )
        rows = project.demonstrations()
        return check_supervised(
            self._work,
            train=rows,
            validation=read_demonstrations(unseen, numbered=True) if unseen else (),
            samples=rendered(rows, project, model.renderer),
            limit_tokens=limit,
            warn_only=warn_only,
        )

    async def _audit(self, project: Project, method: ReinforcementMethod) -> None:
        """Attack the grader with what the base rollouts left; what came of it is shown in preflight."""
        tasks = project.tasks("train")
        measurement = Measurement(stage=PREFLIGHT, split="train")
        subject = Subject(
            grader=project.grader,
            config=method.grader,
            tasks=tasks,
            backends=self._backends,
            rollouts=[record.graded for record in stored_records(self._work, measurement)],
            open_environment=project.open_environment,
            remote_tools=frozenset(tool.name for tool in method.tools),
            limits=project.config.limits,
            answers=find_answers(method.grader, tasks),
            validation=project.tasks("validation") if self._record.validation_file else (),
        )
        allowed = (self._record.metadata or {}).get("audit") == "allow"
        try:
            await gate(
                self._work,
                subject,
                self._audit_config,
                allow_findings=allowed,
                what_to_do="mend the grader, or create the job with metadata.audit = 'allow'",
            )
        except GraderRefusedError as error:
            raise JobFailedError(
                JobError(
                    code="grader_refused", message=str(error), param="method.reinforcement.grader"
                )
            ) from error
        finally:
            found = self._work.run.result.get("audit")
            if found is not None:
                numbers = {**(self._record.preflight or {}), "audit": found}
                self._record = replace(self._record, preflight=numbers)

    async def _train(self) -> None:
        project, resolved, files = self._opened()
        self._record = replace(self._record, error=None)
        self._home.queue.save(self._lease, self._record)
        # Kept here too: whoever notes a result writes the whole run again.
        self._work.run = replace(self._work.run, status=RunStatus.RUNNING, error=None)
        self._home.store.put_run(self._work.run)
        with self._open_model(project, self._home, trained=True) as model:
            match self._record.method:
                case ReinforcementMethod():
                    checkpoint = await self._reinforced(model, resolved)
                case PreferenceMethod() | SupervisedMethod():
                    checkpoint = await self._learned(model, resolved, files)
            if self._work.abandoned:
                raise Stopped(f"job {self._record.id} was called off in its last step")
            trained = self._trained_tokens()
            if not trained or not model.changed(Path(checkpoint.path)):
                raise JobFailedError(_unchanged(self._record.method, trained))
        self._succeed(checkpoint, trained)

    async def _reinforced(self, model: ServedModel, resolved: Resolved) -> Checkpoint:
        config, project = resolved.methods.reinforcement, model.project
        action = (self._record.metadata or {}).get("monitors")
        if action is not None:
            wished = replace(config.monitors, action=cast(MonitorAction, action))
            config = replace(config, monitors=wished)
        trainer = self._trainer(model, config.trainer, "policy_gradient")
        samples = resolved.methods.evaluation.samples_per_task
        tasks = task_sets(project, validation_samples=samples)
        return await reinforce(
            self._work,
            model.setup(),
            trainer,
            tasks,
            config,
            first_step=first_step(trainer),
            concurrency=model.concurrency,
            retention=Retention(best=BEST, best_of=resolved.looks_after),
            follower=JobFollower(self._work, self._lease, self._record, resolved),
        )

    async def _learned(self, model: ServedModel, resolved: Resolved, files: JobFiles) -> Checkpoint:
        """Train on the rows of the job's file: conversations, or pairs of them.

        Raises DataError if none of them holds anything to learn.
        """
        project = model.project
        if isinstance(self._record.method, PreferenceMethod):
            config = resolved.methods.preference
            trainer = self._trainer(model, config.trainer, "preference")
            rows = fitting_pairs(self._work, model, project.preferences())
        else:
            config, longest = resolved.methods.supervised, project.config.limits.max_context_tokens
            trainer = self._trainer(model, config.trainer, "cross_entropy")
            given = project.demonstrations()
            samples = rendered(given, project, model.renderer, longest=longest)
            if not samples:
                raise DataError(
                    f"no training row has an assistant token within the context of {longest} "
                    "tokens; shorten the rows"
                )
            rows = [(sample,) for sample in samples]
        return await learn(
            self._work,
            trainer,
            rows,
            config,
            held_out=self._held_out(model, resolved, files),
            retention=Retention(best=BEST, best_of=resolved.looks_after),
            follower=JobFollower(self._work, self._lease, self._record, resolved),
        )

    def _held_out(self, model: ServedModel, resolved: Resolved, files: JobFiles) -> HeldOut | None:
        """Render the validation file. Raises JobFailedError if nothing in it can be measured."""
        if files.validation is None:
            return None
        try:
            samples = self._unseen(model, files.validation)
        except DataError as error:
            raise JobFailedError(
                JobError(
                    code="invalid_validation_file",
                    message=f"{self._record.validation_file}: {error}",
                    param="validation_file",
                )
            ) from error
        return HeldOut(samples=samples, interval=resolved.interval)

    def _unseen(self, model: ServedModel, path: Path) -> list[Sample]:
        project, renderer = model.project, model.renderer
        longest = project.config.limits.max_context_tokens
        if isinstance(self._record.method, PreferenceMethod):
            pairs = read_preferences(path, numbered=True)
            parted = comparable(pairs, project, renderer, longest=longest)
            samples = [sample for pair in parted for sample in pair]
        else:
            rows = read_demonstrations(path, numbered=True)
            samples = rendered(rows, project, renderer, longest=longest)
        if not samples:
            raise DataError(
                f"no row has anything to measure within the context of {longest} tokens; shorten "
                "the rows, or leave the file out"
            )
        return samples

    def _trainer(self, model: ServedModel, config: TrainerConfig, loss: LossName) -> Trainer:
        trainer = model.resumed_trainer(self._work, config, loss, self._start)
        done = first_step(trainer)
        self._work.event(
            f"Fine-tuning job goes on after step {done}" if done else "Fine-tuning job started"
        )
        return trainer

    @property
    def _start(self) -> Path | None:
        """The checkpoint whose weights the job begins from."""
        return Path(self._record.start) if self._record.start else None

    def _opened(self) -> tuple[Project, Resolved, JobFiles]:
        """Read the files again, since they may have gone, and put the job together."""
        record = self._record
        begun = self._home.store.latest_checkpoint(record.id) is not None
        if self._start is not None and not begun and not self._start.is_dir():
            raise JobFailedError(
                JobError(
                    code="model_not_found",
                    message=f"the weights of {record.model} are gone; begin from another model",
                    param="model",
                )
            )
        files = JobFiles(
            training=self._content(record.training_file, "training_file"),
            validation=(
                self._content(record.validation_file, "validation_file")
                if record.validation_file
                else None
            ),
        )
        known = describe(record.base, self._home.models).context_length
        resolved = resolve(
            record.method,
            train_rows=self._rows(files.training, record.training_file, "training_file"),
            validation_rows=(
                self._rows(files.validation, record.validation_file or "", "validation_file")
                if files.validation
                else 0
            ),
            model_context_tokens=known or CONTEXT_TOKENS,
        )
        project = tuning_project(
            record,
            resolved,
            files,
            self._home.queue.secrets(self._lease),
            folder=self._work.folder,
            backends=self._backends,
        )
        return project, resolved, files

    def _content(self, file_id: str, param: str) -> Path:
        try:
            return self._home.files.path(self._home.files.get(self._record.project, file_id))
        except NotFoundError as error:
            raise JobFailedError(
                JobError(code=f"invalid_{param}", message=str(error), param=param)
            ) from error

    def _rows(self, path: Path, file_id: str, param: str) -> int:
        method = self._record.method
        tools = None
        if isinstance(method, ReinforcementMethod) and method.tools:
            tools = frozenset(tool.name for tool in method.tools)
        try:
            validation = param == "validation_file"
            return check_rows(path, method.type, validation=validation, tools=tools).rows
        except DataError as error:
            raise JobFailedError(
                JobError(code=f"invalid_{param}", message=f"{file_id}: {error}", param=param)
            ) from error

    def _trained_tokens(self) -> int:
        steps = self._work.read_all(StepMetrics)
        return int(sum(step.values.get("sample_tokens", 0.0) for step in steps))

    def _succeed(self, checkpoint: Checkpoint, trained: int) -> None:
        file = self._write_results()
        self._drop_what_nobody_can_call(checkpoint)
        # Last, so that a job which does not succeed leaves no final model behind.
        model = register(self._home, self._lease, self._record, checkpoint, final=True)
        self._finish(
            JobStatus.SUCCEEDED,
            f"New fine-tuned model created: {model.id}",
            "The job has successfully completed",
            fine_tuned_model=model.id,
            result_files=(file.id,),
            trained_tokens=trained,
        )

    def _write_results(self) -> StoredFile:
        """Store the result file; done again after a crash, it replaces itself."""
        rows = [event.data for event in self._work.read_all(Event) if event.kind == "metrics"]
        content = result_file(self._record.method.type, rows)
        file_id = f"file-results-{self._record.id.removeprefix('ftjob-')}"
        with self._home.files.receive(
            self._record.project, "step_metrics.csv", "fine-tune-results"
        ) as incoming:
            incoming.write(content)
            return incoming.commit(file_id=file_id)

    def _drop_what_nobody_can_call(self, last: Checkpoint) -> None:
        """Remove checkpoints that only resuming needed."""
        offered = self._home.catalogue.of_job(self._record.id)
        called = {last.path, *(model.path for model in offered)}
        for folder in self._home.checkpoints(self._record.id).glob("step-*"):
            if str(folder) not in called:
                shutil.rmtree(folder)

    def _let_go(self) -> None:
        """Give the job back as whoever interrupted it wishes."""
        match self._reason:
            case Interruption.PAUSE:
                self._pause("Fine-tuning job paused")
            case Interruption.CANCEL:
                self._finish(JobStatus.CANCELLED, "Fine-tuning job cancelled")
            case Interruption.LEAVE:
                worker = self._lease.worker
                self._work.event(f"Worker {worker} was asked to end; the job waits for another")
                back = JobStatus.QUEUED if self._record.validated else JobStatus.VALIDATING_FILES
                self._home.queue.release(self._lease, replace(self._record, status=back))
            case Interruption.LOST | None:
                raise LeaseLostError(f"job {self._record.id}: the lease is lost")

    def _pause(self, message: str, error: JobError | None = None) -> None:
        """Give the job back until its user resumes it; where it stands can be called."""
        checkpoint = self._home.store.latest_checkpoint(self._record.id)
        if checkpoint is not None:
            offer_checkpoint(self._work, self._lease, self._record, checkpoint)
        self._work.event(message, level="warn" if error else "info")
        self._home.queue.release(
            self._lease,
            replace(self._record, status=JobStatus.PAUSED, error=error, estimated_finish=None),
        )

    def _fail(self, error: AgentRFTError) -> None:
        told = job_error(error)
        if told.code == "server_error":
            _log.error("job %s failed", self._record.id, exc_info=error)
        self._record = replace(self._record, error=told)
        self._finish(JobStatus.FAILED, f"Fine-tuning job failed: {error}", level="error")

    def _finish(
        self,
        status: JobStatus,
        *messages: str,
        level: Literal["info", "error"] = "info",
        **result: Any,
    ) -> None:
        now = time.time()
        events = [Event(level=level, message=message, created_at=now) for message in messages]
        record = replace(
            self._record, status=status, finished_at=now, estimated_finish=None, **result
        )
        self._home.queue.finish(self._lease, record, events)


def _unchanged(method: FineTuningMethod, trained_tokens: int) -> JobError:
    """Say why there is no new model, although all steps were made."""
    if not trained_tokens:
        why = (
            "no task's rollouts scored differently in any step, so there was nothing to reinforce; "
            "give partial credit, choose tasks that succeed sometimes, or raise compute_multiplier"
        )
    else:
        why = (
            "the learning rate is so small, or the steps so few, that rounded to the precision of the "
            f"model nothing moved; raise method.{method.type}.hyperparameters.learning_rate_multiplier"
        )
    return JobError(
        code="weights_unchanged",
        message=f"training left the weights as they were: {why}",
        param=None,
    )


def _failing(error: StormError) -> JobError:
    """Say why the job waits, without which its status would not be understood."""
    return JobError(code="endpoint_failing", message=str(error))


def job_error(error: AgentRFTError) -> JobError:
    """Return what the job's `error` says; what is not the user's to repair is told as an event."""
    message = str(error)
    match error:
        case JobFailedError():
            return error.error
        case ModelError():
            return JobError(code="invalid_model", message=message, param="model")
        case DataError():
            return JobError(code="invalid_training_file", message=message, param="training_file")
        case ConfigError():
            path = message.split(maxsplit=1)[0].rstrip(":")
            return JobError(code="invalid_configuration", message=message, param=path)
        case UserError():
            return JobError(code="invalid_request", message=message)
        case _:
            return JobError(
                code="server_error",
                message="The job failed due to an internal error; its last event says which",
            )
