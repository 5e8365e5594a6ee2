"""A training with pygpt follows the same training in plain PyTorch: model, loss, clipping, AdamW, schedule."""

import itertools
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from pygpt.models import GPT
from pygpt.optim import AdamW
from pygpt.text import BatchLoader, TokenFile
from pygpt.train.config import TrainConfig
from pygpt.train.run import create, model_config
from pygpt.train.trainer import Trainer, parameter_groups
from tests.models.plain import plain_logits

SHAKESPEARE = Path(__file__).parents[2] / "../shared/data/shakespeare.txt"


def losses_of_both(config: TrainConfig, folder: Path, steps: int) -> list[tuple[float, float]]:
    """The losses of the first steps, ours and plain PyTorch's, from the same initial weights on the same batches."""
    create(folder, config, progress=False)
    tokens = TokenFile(folder / "data")
    torch.manual_seed(config.seed)
    shape = model_config(config, tokens.vocab_size)
    model = GPT(shape)
    plain = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}

    def batches() -> BatchLoader:
        return BatchLoader(tokens, config.batch_size, shape.context_length, config.seed)

    betas = (config.beta1, config.beta2)
    trainer = Trainer(model, AdamW(parameter_groups(model, config.weight_decay), betas=betas), config, batches())
    matrices, vectors = ([p for p in plain.values() if (p.dim() >= 2) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=betas)
    schedule = config.learning_rate()
    losses = []
    for step, (ids, targets) in enumerate(itertools.islice(batches(), steps)):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        loss = F.cross_entropy(plain_logits(model, plain, ids).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.values(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        report = trainer.step()
        assert report is not None and report.skipped is None
        losses.append((report.loss, loss.item()))
    return losses


def assert_follows(losses: list[tuple[float, float]]) -> None:
    apart = [abs(ours - theirs) for ours, theirs in losses]
    worst = max(range(len(apart)), key=apart.__getitem__)
    assert apart[worst] < 1e-3, f"step {worst}: ours {losses[worst][0]:.6f}, plain PyTorch's {losses[worst][1]:.6f}"
    assert losses[-1][1] < losses[0][1] - 0.5, "nothing was learned, so nothing was compared"


def test_a_small_gpt_follows_plain_pytorch(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{a} and {b} make {a + b}; " for a in range(40) for b in range(40)))
    config = TrainConfig(
        data=(str(text),), tokenizer="char", layers=2, heads=3, width=48, context=33, batch_size=5, steps=30, lr=4e-3
    )
    assert_follows(losses_of_both(config, tmp_path / "run", config.steps))


@pytest.mark.nightly
@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="shared/data/shakespeare.txt is not beside the project")
def test_a_gpt_on_shakespeare_follows_plain_pytorch(tmp_path: Path) -> None:
    """6 layers, 6 heads, 384 wide, context 256, characters: the first 100 of 2000 steps, which are the warm-up."""
    config = TrainConfig(data=(str(SHAKESPEARE),), tokenizer="char", steps=2000)
    assert_follows(losses_of_both(config, tmp_path / "run", 100))
