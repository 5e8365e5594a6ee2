"""The training loop: its arithmetic is PyTorch's, and a training that is cut anywhere goes on to the same bits."""

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pygpt.optim import AdamW
from pygpt.train.checkpoint import Checkpoints
from pygpt.train.config import TrainConfig
from pygpt.train.display import Display, StepReport
from pygpt.train.metrics import Metrics, read_metrics
from pygpt.train.trainer import Trainer, TrainingStopped, parameter_groups
from tests.train.standin import TinyBatches, TinyModel

EVERY = {"eval_every": 2, "save_every": 3, "sample_every": 2}
SETTINGS: dict[str, Any] = {"steps": 8, "accumulate": 3, "lr": 0.05, "warmup": 2, "keep": 100, **EVERY}


def make_trainer(folder: Path | None = None, resume: Path | None = None, **changes: Any) -> Trainer:
    """A trainer of the tiny model; new ones start from the same seed."""
    config = TrainConfig(**{**SETTINGS, **changes})
    torch.manual_seed(config.seed)
    model = TinyModel()
    if resume is not None:
        model.load(resume)
    trainer = Trainer(
        model,
        AdamW(parameter_groups(model, config.weight_decay), betas=(config.beta1, config.beta2)),
        config,
        TinyBatches(),
        validation=[next(TinyBatches())],
        checkpoints=None if folder is None else Checkpoints(folder / "checkpoints", config.keep),
        metrics=None if folder is None else Metrics(folder / "metrics.jsonl", 0 if resume is None else 10**9),
        sample=lambda: f"text {torch.rand(()).item() >= 0}",  # draws from the stream that training uses
    )
    if resume is not None:
        torch.manual_seed(12345)  # what is restored must not depend on what was there
        trainer.restore(resume)
    return trainer


def files(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(checkpoint.iterdir())}


def test_a_step_is_what_pytorch_does_with_one_large_batch() -> None:
    """Batches with different numbers of targets, accumulated, give the gradient of their tokens' mean."""
    trainer = make_trainer(accumulate=3, grad_clip=0.1, weight_decay=0.3)
    trainer.model.dropout.p = 0.0
    twin = TinyModel(dropout=0.0)
    twin.load_state_dict(trainer.model.state_dict())
    decayed = [twin.embedding.weight, twin.head.weight]
    others = [twin.norm.weight, twin.norm.bias, twin.head.bias]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.99)
    )
    batches = TinyBatches()
    for step in range(4):
        report = trainer.step()
        ids, targets = (torch.cat(parts) for parts in zip(*[next(batches) for _ in range(3)], strict=True))
        for group in optimizer.param_groups:
            group["lr"] = trainer.config.learning_rate()(step)
        loss = twin.loss(ids, targets)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        assert report is not None
        assert (report.step, report.tokens, report.skipped) == (step + 1, 3 * 4 * 6, None)
        assert report.loss == pytest.approx(loss.item(), rel=1e-5)
        assert report.gradient_norm == pytest.approx(norm.item(), rel=1e-4)
        for (name, ours), theirs in zip(trainer.model.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_cut_after_any_batch_it_goes_on_to_the_same_bits(tmp_path: Path, dtype: str) -> None:
    assert make_trainer(tmp_path / "whole", dtype=dtype).run()
    whole = Checkpoints(tmp_path / "whole" / "checkpoints").newest()

    class StopsAfter(TinyModel):
        left = 0

        def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
            if self.training:
                StopsAfter.left -= 1
                trainer.stop_requested = StopsAfter.left == 0
            return super().loss(ids, targets)

    for cut in (1, 2, 3, 7, 11, 23):
        folder = tmp_path / str(cut)
        trainer = make_trainer(folder, dtype=dtype)
        trainer.model.__class__ = StopsAfter
        StopsAfter.left = cut
        assert not trainer.run()
        newest = Checkpoints(folder / "checkpoints").newest()
        assert newest.name == f"step-{cut // 3:08d}" + (f"-part-{cut % 3:02d}" if cut % 3 else "")
        resumed = make_trainer(folder, resume=newest, dtype=dtype)
        assert resumed.run()
        assert files(Checkpoints(folder / "checkpoints").newest()) == files(whole), f"cut after batch {cut}"
        losses = [[(r["step"], r.get("loss"), r.get("validation_loss"), r.get("sample"))
                   for r in read_metrics(f / "metrics.jsonl")] for f in (folder, tmp_path / "whole")]  # fmt: skip
        assert losses[0] == losses[1]


def test_evaluation_and_samples_change_nothing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "a")
    assert trainer.run()
    assert trainer.model.training
    assert make_trainer(tmp_path / "b", eval_every=0, sample_every=0).run()
    assert files(Checkpoints(tmp_path / "a" / "checkpoints").newest()) == files(
        Checkpoints(tmp_path / "b" / "checkpoints").newest()
    )


def test_evaluation_is_the_mean_over_tokens_without_dropout() -> None:
    trainer = make_trainer()
    batches = [next(TinyBatches()), next(TinyBatches(batch=9))]
    trainer.validation = batches
    trainer.model.eval()
    ids, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = trainer.model.loss(ids, targets).item()
    trainer.model.train()
    assert trainer.evaluate() == pytest.approx(expected, rel=1e-6)


class Poisoned(TinyModel):
    """Its loss is not a number from the chosen forward pass on, for so many passes."""

    bad: range
    calls = 0

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        self.calls += self.training
        return super().loss(ids, targets) * (math.nan if self.training and self.calls in self.bad else 1.0)


def test_a_step_with_nan_is_skipped_and_logged(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, accumulate=2, steps=6)
    trainer.model.__class__ = Poisoned
    trainer.model.bad = range(4, 5)  # the second batch of the second step
    before: dict[str, Tensor] = {}

    class Watch(Display):
        def step(self, report: StepReport) -> None:
            state = {name: p.clone() for name, p in trainer.model.state_dict().items()}
            same = before and all(torch.equal(before[name], p) for name, p in state.items())
            assert same == (report.step == 2) or not before
            assert bool(report.skipped) == (report.step == 2)
            before.update(state)

    trainer.display = Watch()
    assert trainer.run()
    steps = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "loss" in r]
    assert [(r["step"], r["loss"] is None, r.get("skipped")) for r in steps] == [
        (step, step == 2, "the loss is nan" if step == 2 else None) for step in range(1, 7)
    ]
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_too_many_skipped_steps_end_the_run_with_its_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, accumulate=1, steps=20, patience=3, save_every=0)
    trainer.model.__class__ = Poisoned
    trainer.model.bad = range(3, 100)
    with pytest.raises(
        TrainingStopped, match=r"stopped at step 5: 3 steps in a row were skipped.*loss is nan.*step-0000"
    ):
        trainer.run()
    newest = Checkpoints(tmp_path / "checkpoints").newest()
    assert newest.name == "step-00000005"
    resumed = make_trainer(tmp_path, resume=newest, accumulate=1, steps=20, patience=3)
    assert resumed.run()
    assert all(torch.isfinite(p).all() for p in resumed.model.parameters())


def test_parameters_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, keep=1, save_every=1)

    class Breaks(Display):
        def step(self, report: StepReport) -> None:
            if report.step == 3:
                trainer.model.norm.bias.data[0] = math.inf

    trainer.display = Breaks()
    with pytest.raises(
        TrainingStopped, match=r"step 3: the parameters are no longer finite.*checkpoint is .*step-00000002"
    ):
        trainer.run()
    assert [path.name for path in Checkpoints(tmp_path / "checkpoints").paths()] == ["step-00000002"]


def test_signals_ask_for_a_checkpoint_and_are_given_back(tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        trainer = make_trainer(tmp_path / str(number), steps=10**6, save_every=0)

        class Signals(Display):
            def step(self, report: StepReport, number: int = number) -> None:
                if report.step == 2:
                    signal.raise_signal(number)

        trainer.display = Signals()
        assert not trainer.run()
        assert Checkpoints(tmp_path / str(number) / "checkpoints").newest().name == "step-00000002"
        assert signal.getsignal(number) is handler


def test_a_second_interrupt_aborts(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, save_every=0)

    class Twice(Display):
        def step(self, report: StepReport) -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    trainer.display = Twice()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background has not
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert Checkpoints(tmp_path / "checkpoints").paths() == []


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, steps=1, warmup=0).run()
    trainer = make_trainer()
    trainer._names = {p: name.replace("head", "tail") for p, name in trainer._names.items()}
    with pytest.raises(ValueError, match=r"does not belong to this training: there is no parameter 'head\.bias'"):
        trainer.restore(Checkpoints(tmp_path / "checkpoints").newest())


def test_a_checkpoint_of_a_cpu_goes_on_elsewhere(tmp_path: Path) -> None:
    make_trainer(tmp_path, steps=1, warmup=0).run()
    trainer = make_trainer()
    trainer._device = torch.device("cuda")  # of which a checkpoint in mid-step's tensors alone would know
    trainer.restore(Checkpoints(tmp_path / "checkpoints").newest())
    assert trainer.steps_done == 1


def test_a_half_done_step_is_finished_with_its_own_batches(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=2)
    forward_backward = trainer._forward_backward

    def stop_after_one(batch: tuple[Tensor, ...], weight: float) -> None:
        forward_backward(batch, weight)
        trainer.stop_requested = True

    trainer._forward_backward = stop_after_one  # type: ignore[method-assign]
    assert not trainer.run()
    newest = Checkpoints(tmp_path / "checkpoints").newest()
    assert newest.name == "step-00000000-part-01"
    with pytest.raises(ValueError, match=r"inside a step of batch_size and accumulate \[12, 3\].* has \[12, 4\]"):
        make_trainer(tmp_path, resume=newest, accumulate=4)
    assert make_trainer(tmp_path, resume=newest, steps=2).run()


def test_an_evaluation_that_is_no_number_is_not_the_best(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=1, warmup=0, early_stopping=9)
    assert [trainer._judge(loss) for loss in (math.nan, math.inf, 3.0, math.nan, 2.0)] == [
        False,
        False,
        True,
        False,
        True,
    ]
    assert trainer.best == {"step": 0, "loss": 2.0} and trainer.stale == 0


def test_decay_groups() -> None:
    decayed, others = parameter_groups(TinyModel(), 0.5)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.5, 0.0)
    assert [p.dim() for p in decayed["params"]] == [2, 2]
    assert [p.dim() for p in others["params"]] == [1, 1, 1]
