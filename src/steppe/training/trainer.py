"""The loop: from a config to the files of a finished run."""

from __future__ import annotations

import math
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from numpy.typing import NDArray
from torch import Tensor

from steppe.data import DomainDataset, open_dataset
from steppe.data.loader import Batch
from steppe.data.slots import Part
from steppe.errors import SteppeError
from steppe.models import Classifier, check_backbone
from steppe.training.checkpoints import CorruptCheckpointError, all_finite
from steppe.training.config import RunConfig, config_id, run_name
from steppe.training.evaluation import Evaluation, evaluate
from steppe.training.inputs import EVALUATION_BATCH, Inputs, check_inputs, input_channels, splits_of
from steppe.training.interruption import Interruption
from steppe.training.losses import NonFiniteLossError
from steppe.training.machine import Machine, accelerator, describe, reproducible, versions
from steppe.training.outputs import checkpoint, measures, write_predictions, write_result, write_weights
from steppe.training.progress import Report, Silent
from steppe.training.pruning import Pruned
from steppe.training.results import RESULT, Result, read_result
from steppe.training.run_files import RunFiles
from steppe.training.selection import Settled, settle
from steppe.training.session import Session
from steppe.training.sharding import check_parallel
from steppe.training.sharpness import held_out_sharpness
from steppe.training.stopwatch import Stopwatch
from steppe.training.team import agreed, team_of


class Trainer:
    """Trains one run and writes its files.

    The same call on a directory that holds a part of the run continues it, and ends with the same bits as if it had
    never stopped; on a finished run it returns the result at once.

    ::

        from steppe.training import RunConfig

        config = RunConfig(dataset="emoji", held_out="line", algorithm="disam", image_size=64, steps=200)
        result = steppe.Trainer(config, out="runs/mine").fit()
        print(result.held_out_accuracy)

    In processes that ``torchrun`` or ``accelerate launch`` has started together, all of which call this, they train one
    run: its numbers are those of one process, within rounding. The first process alone writes and reports.

    Args:
        config: what is trained.
        out: the directory of this run.
        dataset: the opened data set, where its pictures have been checked already; otherwise ``config.dataset`` is
            opened and every picture is checked first.
        machine: device, threads and loading processes.
        report: what to show meanwhile.
        command: the command line to put down in ``result.json``; by default this process's.
        evaluated: is told of every evaluation during training, step and validation accuracy, and answers whether to
            stop the run there, as not worth finishing. The answer at the last step changes nothing.

    Raises:
        SteppeError: the data set, the split or a setting is not usable (before anything is written).
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        out: Path | str,
        dataset: DomainDataset | None = None,
        machine: Machine | None = None,
        report: Report | None = None,
        command: str | None = None,
        evaluated: Callable[[int, float], bool] | None = None,
    ) -> None:
        check_backbone(config.backbone)
        self.config = config
        self.out = Path(out)
        self.machine = machine or Machine()
        self.team = team_of(self.machine.device)
        check_parallel(self.machine, self.team, config)
        self.report = (report if self.team.main else None) or Silent()
        self.command = command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        self.evaluated = evaluated
        if dataset is None:
            dataset = open_dataset(config.dataset)
        check_inputs(dataset, config)
        self.dataset = dataset
        self.splits = splits_of(dataset, config)
        self.canonical = config.canonical(
            dataset=dataset.name, fingerprint=dataset.fingerprint(), split=self.splits.protocol
        )
        self.id = config_id(self.canonical)
        self._files = RunFiles(self.out, self.id, self.canonical, self.report)
        self._saved_step: int | None = None

    def fit(self) -> Result:
        """Train until the run is finished.

        A ``result.json`` that is damaged is named, renamed to ``result.json.damaged``, and made again.

        Raises:
            Pruned: ``evaluated`` said to stop; ``pruned.json`` says when, and the run is not finished.
            NewerResultError: the run was finished by a later steppe, whose ``result.json`` this one cannot read.
            NonFiniteLossError: the loss is NaN or infinite; names step, domain and learning rate. The last good
                checkpoint is kept.
            OutputError: the directory is read-only or full.
            RunLockedError: another process is training this run.
            SteppeError: the directory holds another run.
            Interrupted: a signal asked to stop; a checkpoint was written (unless in the middle of an evaluation, where
                the one before it stays).
        """
        team = self.team
        with ExitStack() as held:
            finished = team.on_main(lambda: self._files.take(held))
            if finished is not None:
                return finished
            engine = accelerator(self.machine, self.config.precision)
            self._inputs = Inputs(self.dataset, self.config, self.machine, engine.device, self.report)
            with Interruption(patient=not team.alone) as interruption, reproducible(self.machine, engine.device):
                session, length = self._begin(engine)
                self.report.begin(run_name(self.config), step=session.step, total=self.config.steps)
                with ExitStack() as opened:
                    team.on_main(lambda: self._files.open(opened, length))
                    self._train(session, interruption)
                settled = self._settle(session, interruption)
                return team.on_main(lambda: self._finish(session, settled))

    # --- the loop ---

    def _train(self, session: Session, interruption: Interruption) -> None:
        team = self.team
        config, every = self.config, self.machine.checkpoint_every
        loss = math.nan
        watch = Stopwatch()
        for batch in self._batches(session, session.step, config.steps):
            session.make_step(batch)
            step = session.step
            evaluates = step % config.eval_every == 0 or step == config.steps
            logs = evaluates or step % config.log_every == 0
            asked = bool(interruption.agreed(team))
            saves = evaluates or asked or (every is not None and step % every == 0)
            if logs or saves:
                # Waits for the device, so that the time below is true.
                team.together(partial(session.losses.check, step, kept=self._kept, advice=session.advice))
            session.losses.seconds += watch.lap()
            if logs:
                line = session.losses.drain()
                loss = line["loss"]
                session.step_seconds.append(line["seconds"])
                self._write({"kind": "train", "step": step, **line})
                if warning := session.divergence(loss):
                    self.report.say(f"warning: {warning}")
            self.report.advance(step, loss)
            if saves:
                self._check_weights(session)
            if evaluates:
                with session.method.settled(), session.whole() as model:
                    evaluation = self._evaluate(session, model, interruption)
                    if session.method.average is None:
                        session.selection.consider(step, evaluation, model)
                    sharpness = team.on_main(
                        partial(
                            held_out_sharpness,
                            model,
                            self.dataset,
                            self.splits,
                            size=config.image_size,
                            batches=self.machine.sharpness,
                        )
                    )
                session.method.evaluated(evaluation.validation_loss)
                session.checkpoints.append(checkpoint(step, self.splits, evaluation))
                measured = {"accuracy": evaluation.accuracy, "loss": evaluation.loss, **sharpness}
                self._write({"kind": "eval", "step": step, **measured, "seconds": watch.split()})
                self.report.evaluated(step, evaluation.validation_accuracy, loss, session.step_seconds[-1])
                # Asked before the checkpoint is written, so that a run killed in between asks again.
                if self._is_stopped(step, evaluation) and step < config.steps:
                    self._prune(session)
            if saves:
                session.seconds += watch.total()
                self._save(session)
                interruption.check_together(team)
            watch.lap()
        session.seconds += watch.total()

    def _is_stopped(self, step: int, evaluation: Evaluation) -> bool:
        asked = self.evaluated
        return asked is not None and self.team.on_main(lambda: asked(step, evaluation.validation_accuracy))

    def _prune(self, session: Session) -> NoReturn:
        seen = [(int(row["step"]), float(row["validation_accuracy"])) for row in session.checkpoints]

        self.team.on_main(lambda: self._files.prune(seen, steps=self.config.steps, command=self.command))
        raise agreed(Pruned(self.out, session.step, self.config.steps))

    def _batches(self, session: Session, start: int, stop: int) -> Iterable[Batch]:
        part = Part(self.team.rank, self.team.size)
        return self._inputs.training(self.splits.train, session.model, start, stop, part)

    def _evaluate(self, session: Session, model: Classifier, interruption: Interruption) -> Evaluation:
        def loader(domain: str, indices: NDArray[np.int64]) -> Iterable[tuple[Tensor, Tensor]]:
            return interruption.watch(self._inputs.evaluation(domain, indices, model))

        evaluation = evaluate(model, self.splits, loader, device=session.device, team=self.team, batch=EVALUATION_BATCH)
        broken = tuple(
            domain for domain, losses in evaluation.loss.items() if not all(map(math.isfinite, losses.values()))
        )
        if broken:
            self._stop(session, f"the loss on {', '.join(broken)} is not finite in the evaluation", broken)
        return evaluation

    def _settle(self, session: Session, interruption: Interruption) -> Settled:
        wanted = session.batch_norm_batches
        with session.whole() as model:
            return settle(
                session.method,
                session.selection,
                model,
                batches=self._whole_batches(session, wanted, interruption) if wanted else None,
                evaluate=lambda: self._evaluate(session, model, interruption),
                say=self.report.say,
            )

    def _whole_batches(self, session: Session, count: int, interruption: Interruption) -> Iterable[Batch]:
        """For what every process does alike."""
        batches = self._inputs.training(self.splits.train, session.model, 0, count)
        return interruption.watch(batches) if self.team.alone else batches

    def _check_weights(self, session: Session) -> None:
        if not all(self.team.together(lambda: all_finite(session.trained_state()))):
            self._stop(session, "weights or optimizer state are not finite", session.losses.domains)

    def _stop(self, session: Session, what: str, domains: tuple[str, ...]) -> NoReturn:
        lr = session.last_lr
        raise agreed(
            NonFiniteLossError(
                f"{what} after step {session.step}, at learning rate {lr:g}; {self._kept}. {session.advice}",
                step=session.step,
                domains=domains,
                lr=lr,
            )
        )

    # --- files ---

    def _write(self, line: dict[str, Any]) -> None:
        self.team.on_main(lambda: self._files.write(line))

    @property
    def _kept(self) -> str:
        if self._saved_step is None:
            return "no checkpoint had been written yet"
        return f"the last good checkpoint, of step {self._saved_step}, is kept in {self._files.state_path}"

    def _begin(self, engine: Accelerator) -> tuple[Session, int]:
        """The session to go on with, and how much of the metrics file belongs to it."""
        session = self._new_session(engine)
        try:
            state = self.team.on_main(self._files.load)
            if state is None:
                return session, 0
            if not session.can_load(state):
                raise agreed(
                    SteppeError(
                        f"{self._files.state_path} was written by a run whose weights were not divided: go on with "
                        "--parallel ddp, or delete it to train the run again"
                    )
                )
            try:
                session.load_state_dict(state)
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                raise CorruptCheckpointError(self._files.state_path, f"{type(error).__name__}: {error}") from error
        except CorruptCheckpointError as error:
            self.report.say(f"warning: {error}; the run starts again from the beginning")
            return self._new_session(engine), 0
        self._saved_step = session.step
        self._inputs.resumed(state.get("augmentation", ()))
        return session, int(state["metrics_bytes"])

    def _new_session(self, engine: Accelerator) -> Session:
        set_seed(self.config.seed)
        return Session(
            self.config,
            engine,
            classes=len(self.dataset.classes),
            domains=tuple(self.splits.train),
            channels=input_channels(self.dataset, self.config.backbone),
            team=self.team,
            parallel=self.machine.parallel,
        )

    def _save(self, session: Session) -> None:
        state = {"augmentation": self._inputs.augmentation, **session.state_dict()}
        self.team.on_main(lambda: self._files.save(state))
        self._saved_step = session.step

    def _finish(self, session: Session, settled: Settled) -> Result:
        evaluation = settled.evaluation
        rows = session.checkpoints
        if settled.made_at_the_end:
            rows = [checkpoint(self.config.steps, self.splits, evaluation)]
        also = self.config.validation_domain
        write_weights(self.out / "model.safetensors", settled.weights, self.canonical)
        write_predictions(self.out / "predictions.json", self.dataset, self.splits, evaluation)
        write_result(
            self.out / RESULT,
            {
                "id": self.id,
                "dataset": self.dataset.name,
                "dataset_spec": self.dataset.spec,
                "algorithm": self.canonical["algorithm"],
                "held_out": self.config.held_out,
                **({} if also is None else {"validation_domain": also}),
                "seed": self.config.seed,
                "selected_step": settled.step,
                **settled.told,
                **measures(self.splits, evaluation),
                "seconds_per_step": statistics.median(session.step_seconds),
                "seconds": session.seconds,
                "steps": self.config.steps,
                "parameters": session.parameters,
                "command": self.command,
                "versions": versions(),
                "device": describe(session.device),
                "augmentation": ", then ".join(self._inputs.augmentation),
                "threads": torch.get_num_threads(),
                "processes": self.team.size,
                **({} if self.team.alone else {"parallel": self.machine.parallel}),
                "checkpoints": rows,
            },
        )
        self._files.forget_checkpoint()
        result = read_result(self.out)
        assert result is not None
        return result
