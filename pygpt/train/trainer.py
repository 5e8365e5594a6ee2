"""The training loop: steps that can stop anywhere and go on to the same bits.

Per optimiser step: ``accumulate`` batches, each forward and backward; the gradient's norm; the guard's word on it;
clipping; AdamW at the schedule's learning rate. What a step depends on is saved in a checkpoint (parameters, optimiser
state, the data's position, PyTorch's random streams, the guard's memory, and, when it is stopped half-way through the
batches of a step, the gradients so far), and nothing else may decide a bit: evaluation and samples leave the random
streams alone.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pygpt import ops
from pygpt.optim import AdamW
from pygpt.train.checkpoint import Checkpoints, TrainingState, load_checkpoint
from pygpt.train.config import TrainConfig
from pygpt.train.display import Display, StepReport
from pygpt.train.guard import SpikeGuard
from pygpt.train.metrics import Metrics

IGNORED = -100  # the target that GPT.loss leaves out of the mean


class Batches(Protocol):
    """Where training batches come from: an endless iterator with a position that can be saved."""

    def __next__(self) -> tuple[Tensor, ...]:
        """Give the arguments of the model's loss, such as ids and targets, both (batch, time) int64."""

    def state_dict(self) -> dict[str, Any]:
        """Give the position, as plain JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""


class TrainingStopped(RuntimeError):
    """The training has diverged: too many steps in a row were refused, or the parameters are no longer finite."""


def parameter_groups(
    model: nn.Module, weight_decay: float, steady: Collection[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """Parameters in two groups: matrices and tables decay, biases, layer norms and what is ``steady`` do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    never = {id(p) for p in [*steady, *(p for p in parameters if p.dim() < 2)]}
    return [
        {"params": [p for p in parameters if id(p) not in never], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in never], "weight_decay": 0.0},
    ]


class Trainer:
    """Trains a model and keeps its checkpoints.

    Args:
        model: has ``loss``, which takes a batch's tensors, and ``save_pretrained(folder)``; a :class:`pygpt.GPT`.
        optimizer: over the model's parameters; its learning rate is set at each step.
        config: how to train. What it says of text and model is used elsewhere.
        batches: the training batches.
        validation: batches of an evaluation, the same each time; may be empty.
        checkpoints: where to save; None saves nothing.
        metrics: where to record; None records nothing.
        display: what is told of the progress.
        sample: writes a text with the model, for ``sample_every``.
        save_model: writes the model into a checkpoint's folder; None: its ``save_pretrained`` does.
        save_extra: writes what else belongs into a checkpoint's folder, such as the tokenizer.
        after_save: called after each checkpoint, to draw the loss curve.
        count_targets, count_tokens: of a batch, how many targets count, and how many tokens it has.
        arguments: which arguments of the loss a batch has; None: the first ones.
        loss_options: further arguments of the loss in training, such as label smoothing; evaluations do without.
        scores: what else an evaluation tells, from the model and the validation batches.
        flops_per_token, peak: for the share of the machine's peak; None if they are not known.
    """

    def __init__(
        self,
        model: Any,
        optimizer: AdamW,
        config: TrainConfig,
        batches: Batches,
        validation: Sequence[tuple[Tensor, ...]] = (),
        *,
        checkpoints: Checkpoints | None = None,
        metrics: Metrics | None = None,
        display: Display | None = None,
        sample: Callable[[], str] | None = None,
        save_model: Callable[[Path], None] | None = None,
        save_extra: Callable[[Path], None] | None = None,
        after_save: Callable[[], None] | None = None,
        count_targets: Callable[[tuple[Tensor, ...]], int] = lambda batch: int((batch[1] != IGNORED).sum()),
        count_tokens: Callable[[tuple[Tensor, ...]], int] = lambda batch: batch[0].numel(),
        arguments: Sequence[str] | None = None,
        loss_options: dict[str, Any] | None = None,
        scores: Callable[[Any, Sequence[tuple[Tensor, ...]]], dict[str, float]] | None = None,
        flops_per_token: float | None = None,
        peak: float | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self.batches = batches
        self.validation = validation
        self.checkpoints = checkpoints
        self.metrics = metrics
        self.display = display or Display()
        self.sample = sample
        self.save_model = model.save_pretrained if save_model is None else save_model
        self.save_extra = save_extra
        self.after_save = after_save
        self.count_targets = count_targets
        self.count_tokens = count_tokens
        self.arguments = arguments
        self.loss_options = loss_options or {}
        self.scores = scores
        self.flops_per_token = flops_per_token
        self.peak = peak

        self.steps_done = 0
        self.stop_requested = False
        self.best: dict[str, float] | None = None  # step and loss of the best evaluation, where its checkpoint is kept
        self.stale = 0  # evaluations since
        self.guard = SpikeGuard(config.spike_sigma or None, patience=config.patience)
        self._schedule = config.learning_rate()
        self._names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        self._device = next(model.parameters()).device
        # The step in progress: its batches, how many of them are done, their loss so far, and where they began.
        self._step_batches: list[tuple[Tensor, ...]] = []
        self._parts_done = 0
        self._loss = torch.zeros((), device=self._device)
        self._position = batches.state_dict()
        self._seconds = 0.0

    def run(self) -> bool:
        """Train to the last step, saving, evaluating and sampling on the way.

        In fine-tuning, and where ``early_stopping`` is set, the checkpoint of the lowest validation loss is kept; the
        training ends after so many evaluations without a lower one.

        The first Ctrl-C (or SIGTERM) saves a checkpoint at once and ends; a second one aborts without.

        Returns: whether the training came to its end.
        Raises: TrainingStopped when the guard gives up; OSError when a checkpoint or record cannot be written. The
            checkpoints before it remain.
        """
        config = self.config
        self.display.begin(self.steps_done, config.steps)
        try:
            with self._stop_on_signals():
                while self.steps_done < config.steps and not self._stopped_early:
                    report = self.step()
                    if report is None:
                        self.display.note("stopping: saving a checkpoint")
                        self.save()
                        return False
                    self._record(report)
                    if self.guard.exhausted:
                        self._give_up(report)
                    last = self.steps_done == config.steps
                    improved = False
                    if self.validation and config.eval_every and (last or self.steps_done % config.eval_every == 0):
                        improved = self._judge(self.evaluate())
                    last = last or self._stopped_early
                    due = config.sample_every and self.steps_done % config.sample_every == 0
                    if self.sample and due and not report.skipped:  # a model that has diverged cannot write
                        self._write_sample()
                    if last or improved or (config.save_every and self.steps_done % config.save_every == 0):
                        self.save()
            if self._stopped_early and self.best is not None:
                self.display.note(
                    f"stopped early: {self.stale} evaluations in a row were no better than that of step "
                    f"{self.best['step']}, loss {self.best['loss']:.4f}"
                )
            return True
        finally:
            self.display.end()

    @property
    def _stopped_early(self) -> bool:
        return self.config.early_stopping is not None and self.stale >= self.config.early_stopping

    def _judge(self, loss: float) -> bool:
        """Whether an evaluation's loss is the lowest so far, in a training that keeps its best checkpoint."""
        if self.config.task is None and self.config.early_stopping is None:
            return False
        if not loss < (math.inf if self.best is None else self.best["loss"]):  # NaN is not
            self.stale += 1
            return False
        self.best, self.stale = {"step": self.steps_done, "loss": loss}, 0
        return True

    def step(self) -> StepReport | None:
        """Take one optimiser step, or finish one that was stopped half-way.

        Returns: what happened; None if a stop was requested before the step was complete. What is done of it stays,
            and goes into the next checkpoint.
        """
        if not self._step_batches:
            self._fetch()
        counts = [self.count_targets(batch) for batch in self._step_batches]
        total = max(1, sum(counts))
        while self._parts_done < len(counts):
            if self.stop_requested:
                return None
            started = time.perf_counter()
            # The mean over all tokens of the step, not the mean of the batches' means.
            self._forward_backward(self._step_batches[self._parts_done], counts[self._parts_done] / total)
            self._parts_done += 1
            self._seconds += time.perf_counter() - started
        return self._finish(sum(map(self.count_tokens, self._step_batches)))

    def evaluate(self) -> float:
        """The mean loss per token of the validation batches, without dropout; recorded and displayed."""
        total, tokens = 0.0, 0
        with self._aside():
            for batch in self.validation:
                count = self.count_targets(batch)
                with self._arithmetic():
                    total += float(self._loss_of(batch)) * count
                tokens += count
            with self._arithmetic():
                scores = {} if self.scores is None else self.scores(self.model, self.validation)
        loss = total / max(1, tokens)
        if self.metrics is not None:
            self.metrics.write(self.steps_done, validation_loss=loss, **scores)
        self.display.evaluation(self.steps_done, loss)
        if scores:
            self.display.note(", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.items()))
        return loss

    def save(self) -> Path | None:
        """Save a checkpoint of this moment, inside a step too.

        Raises: OSError if it cannot be written, TrainingStopped if a parameter is not finite; those before it remain.
        """
        if self.checkpoints is None:
            return None
        if not all(bool(parameter.isfinite().all()) for parameter in self._names):
            raise TrainingStopped(
                f"stopped at step {self.steps_done}: the parameters are no longer finite, so they are not saved; "
                f"{self._last_saved()}. Use a lower learning rate"
            )
        state = TrainingState(
            step=self.steps_done,
            part=self._parts_done,
            values={
                "data": self._position,
                "guard": self.guard.state_dict(),
                "seconds": self._seconds,
                "batches": self._batches_of_a_step(),
                "best": self.best,
                "stale": self.stale,
            },
            tensors={**self._random_streams(), **self._optimizer_tensors(), **self._half_done_tensors()},
        )
        path = self.checkpoints.save(state, self._save_model)
        if self.after_save is not None:
            self.after_save()
        return path

    def restore(self, path: str | Path) -> None:
        """Go on from a checkpoint, whose model this trainer's model already is.

        Raises: FileNotFoundError, ValueError naming what is missing, damaged, or of another training.
        """
        state = load_checkpoint(path)
        try:
            self._restore(state)
        except KeyError as error:
            raise ValueError(f"{path} does not belong to this training: there is no {error.args[0]}") from None

    def _restore(self, state: TrainingState) -> None:
        tensors = state.tensors
        if state.part and state.values["batches"] != self._batches_of_a_step():
            raise ValueError(
                f"the checkpoint is inside a step of batch_size and accumulate {state.values['batches']}, and the "
                f"configuration has {self._batches_of_a_step()}: finish the step with the former, or resume from an "
                "earlier checkpoint"
            )
        self.steps_done, self._parts_done = state.step, state.part
        self.guard.load_state_dict(state.values["guard"])
        self.guard.refused_in_a_row %= self.config.patience  # after giving up, its user has decided to go on
        self._seconds = float(state.values["seconds"])
        self.best, self.stale = state.values.get("best"), state.values.get("stale", 0)
        self.batches.load_state_dict(state.values["data"])
        self._position = state.values["data"]
        if self._parts_done:
            self._fetch()
            self._loss = tensors["loss"].to(self._device)
            for parameter, name in self._names.items():
                gradient = tensors.get(f"gradient/{name}")
                parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self._restore_optimizer(tensors)
        torch.set_rng_state(tensors["random/cpu"])
        if self._device.type == "cuda" and "random/cuda" in tensors:  # else it was trained on a CPU before
            torch.cuda.set_rng_state(tensors["random/cuda"], self._device)

    def _batches_of_a_step(self) -> list[int]:
        return [self.config.batch_size, self.config.accumulate]

    def _fetch(self) -> None:
        self._position = self.batches.state_dict()
        self._step_batches = [next(self.batches) for _ in range(self.config.accumulate)]

    def _loss_of(self, batch: tuple[Tensor, ...], **options: Any) -> Any:
        moved = [each.to(self._device) for each in batch]
        if self.arguments is None:
            return self.model.loss(*moved, **options)
        return self.model.loss(**dict(zip(self.arguments, moved, strict=True)), **options)

    def _forward_backward(self, batch: tuple[Tensor, ...], weight: float) -> None:
        with self._arithmetic():
            loss = self._loss_of(batch, **self.loss_options) * weight
        loss.backward()
        self._loss = self._loss + loss.detach()

    def _finish(self, tokens: int) -> StepReport:
        """Judge the gradient, and take the step unless it would do harm."""
        started = time.perf_counter()
        gradients = [p.grad for p in self._names if p.grad is not None]
        loss, norm = float(self._loss), float(ops.grad_norm(gradients))
        rate = self._schedule(self.steps_done)
        skipped = self.guard.refuse(loss, norm)
        if skipped is None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            clip = self.config.grad_clip
            self.optimizer.step(grad_scale=min(1.0, clip / (norm + 1e-6)) if clip else None)
        self.optimizer.zero_grad(set_to_none=True)
        seconds = self._seconds + time.perf_counter() - started
        self.steps_done += 1
        self._step_batches, self._parts_done, self._seconds = [], 0, 0.0
        self._loss = torch.zeros((), device=self._device)
        self._position = self.batches.state_dict()
        share = None
        if self.flops_per_token is not None and self.peak is not None and seconds > 0:
            share = tokens * self.flops_per_token / seconds / self.peak
        return StepReport(self.steps_done, loss, norm, rate, tokens, seconds, share, skipped)

    def _record(self, report: StepReport) -> None:
        if self.metrics is not None:
            values = {
                "loss": report.loss,
                "gradient_norm": report.gradient_norm,
                "learning_rate": report.learning_rate,
                "tokens": report.tokens,
                "tokens_per_second": round(report.tokens_per_second, 1),
                "share_of_peak": None if report.share_of_peak is None else round(report.share_of_peak, 4),
                "seconds": round(report.seconds, 4),
            }
            self.metrics.write(report.step, **values, **({"skipped": report.skipped} if report.skipped else {}))
        self.display.step(report)

    def _write_sample(self) -> None:
        assert self.sample is not None
        with self._aside():
            text = self.sample()
        if self.metrics is not None:
            self.metrics.write(self.steps_done, sample=text)
        self.display.sample(self.steps_done, text)

    def _give_up(self, report: StepReport) -> None:
        self.save()
        raise TrainingStopped(
            f"stopped at step {report.step}: {self.guard.refused_in_a_row} steps in a row were skipped, the last "
            f"because {report.skipped}; {self._last_saved()}. Resume with a lower learning rate, or a larger "
            "spike_sigma or patience"
        )

    def _last_saved(self) -> str:
        paths = self.checkpoints.paths() if self.checkpoints is not None else []
        return f"the last checkpoint is {paths[-1]}" if paths else "there is no checkpoint"

    def _arithmetic(self) -> torch.autocast:
        """Forward in the configured dtype; backward follows it. Parameters, gradients and optimiser state stay fp32."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.config.dtype == "bf16")

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Use the model without changing what the training depends on."""
        devices = [self._device] if self._device.type == "cuda" else []
        self.model.eval()
        try:
            with torch.random.fork_rng(devices), torch.no_grad():
                yield
        finally:
            self.model.train()

    @contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        """Have the first Ctrl-C or SIGTERM ask for a stop, and the second do what it always did."""
        previous: dict[signal.Signals, Any] = {}

        def restore() -> None:
            while previous:
                signal.signal(*previous.popitem())

        def ask(number: int, frame: FrameType | None) -> None:
            self.stop_requested = True
            restore()

        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, ask)
        try:
            yield
        finally:
            restore()

    def _save_model(self, folder: Path) -> None:
        self.save_model(folder)
        if self.save_extra is not None:
            self.save_extra(folder)

    def _random_streams(self) -> dict[str, Tensor]:
        streams = {"random/cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            streams["random/cuda"] = torch.cuda.get_rng_state(self._device)
        return streams

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimiser's state by the parameters' names, not by their numbers, which depend on the groups."""
        state = self.optimizer.state
        return {
            f"optimizer/{name}/{key}": torch.as_tensor(value)
            for parameter, name in self._names.items()
            if parameter in state
            for key, value in state[parameter].items()
        }

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        """Through load_state_dict, which puts each tensor on its parameter's device and takes over its dtype."""
        by_name: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition("/")
            if kind == "optimizer":
                name, _, entry = rest.rpartition("/")
                by_name.setdefault(name, {})[entry] = tensor
        unknown = set(by_name) - set(self._names.values())
        if unknown:
            raise KeyError(f"parameter {min(unknown)!r} that its optimiser state is for")
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = {i: by_name[self._names[p]] for i, p in enumerate(parameters) if self._names[p] in by_name}
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def _half_done_tensors(self) -> dict[str, Tensor]:
        if not self._parts_done:
            return {}
        gradients = {f"gradient/{name}": p.grad for p, name in self._names.items() if p.grad is not None}
        return {"loss": self._loss, **gradients}
