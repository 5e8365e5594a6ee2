"""What a run is told reaches what it is for: the model, the optimiser, the loss, the arithmetic."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pygpt.train.config import TrainConfig
from pygpt.train.run import create, open_run
from tests.cli.conftest import threads  # noqa: F401

SMALL: dict[str, Any] = {"tokenizer": "char", "layers": 1, "heads": 2, "width": 16, "context": 16, "batch_size": 2}


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat, and the dog sat on the cat.\n" * 20)
    return str(path)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("given", [True, False])
def test_settings_reach_what_they_set(text: str, tmp_path: Path, given: bool) -> None:
    told = {"checkpoint_blocks": True, "beta1": 0.8, "beta2": 0.7, "weight_decay": 0.3, "threads": 3}
    told |= {"objective": "seq2seq", "label_smoothing": 0.2, "accumulate": 3}
    config = TrainConfig(data=(text,), steps=2, **SMALL, **(told if given else {}))
    create(tmp_path / "run", config, progress=False)
    with open_run(tmp_path / "run", config) as trainer:
        assert trainer.model.checkpoint_blocks == config.checkpoint_blocks == given
        assert trainer.loss_options == ({"label_smoothing": 0.2} if given else {})
        decayed, others = trainer.optimizer.param_groups
        assert decayed["betas"] == others["betas"] == (config.beta1, config.beta2)
        assert (decayed["weight_decay"], others["weight_decay"]) == (config.weight_decay, 0)
        assert not given or torch.get_num_threads() == 3


def test_bf16_is_autocasts(text: str, tmp_path: Path) -> None:
    """The first loss is that of the model under autocast; parameters and gradients stay in float32."""
    losses = {}
    for dtype in ("fp32", "bf16"):
        config = TrainConfig(data=(text,), steps=2, dtype=dtype, **SMALL)
        create(tmp_path / dtype, config, progress=False)
        with open_run(tmp_path / dtype, config) as trainer:
            position = trainer.batches.state_dict()
            batch = next(trainer.batches)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
                expected = float(trainer.model.loss(*batch))
            trainer.batches.load_state_dict(position)
            report = trainer.step()
            assert report is not None
            losses[dtype] = report.loss
            assert report.loss == expected
            assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert losses["fp32"] != losses["bf16"]
    assert losses["fp32"] == pytest.approx(losses["bf16"], rel=0.01)
