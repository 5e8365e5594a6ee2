"""``pygpt train --objective``: each learns, tells its baselines, and goes on to the same bits."""

import shlex
import shutil
from pathlib import Path

import pytest

from pygpt import Encoder, Seq2Seq
from pygpt.cli import main
from pygpt.text import Tokenizer
from pygpt.train.checkpoint import Checkpoints
from pygpt.train.metrics import read_metrics
from tests.cli.conftest import Run

FLAGS = shlex.split(
    "--tokenizer char --layers 1 --heads 2 --width 16 --context 16 --batch-size 4 --steps 4 --save-every 2 "
    "--dropout 0.1 --eval-every 2 --log-every 1 --lr 0.03 --validation 0.5 --separator '\\n\\n'"
)

MODELS = {"mlm": Encoder, "mlm+nsp": Encoder, "seq2seq": Seq2Seq, "denoise": Seq2Seq}
Out = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    animals = ("cat", "cow", "hen", "fox", "owl", "ant")
    parts = [f"the {animal} sat on the mat.\nand the dog sat on the {animal}.\n" * 4 for animal in animals]
    path.write_text("\n\n".join(parts))
    return path


def files(run: Path) -> dict[str, bytes]:
    newest = Checkpoints(run / "checkpoints").newest()
    return {path.name: path.read_bytes() for path in newest.iterdir() if path.name != "training.json"}


@pytest.mark.parametrize("objective", MODELS)
def test_an_objective_trains_and_goes_on_to_the_same_bits(
    text: Path, tmp_path: Path, capsys: Out, objective: str
) -> None:
    words = ["--data", str(text), *FLAGS, "--objective", objective]
    assert main(["train", "--out", str(tmp_path / "whole"), *words]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "to beat on the validation text: unigram loss" in out and "bigram loss" in out
    assert ("next sentence accuracy" in out) == (objective == "mlm+nsp") and "pygpt sample" not in out
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step-00000004")
    assert main(["train", "--resume", str(tmp_path / "cut")]) == 0
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    model = MODELS[objective].from_pretrained(Checkpoints(tmp_path / "whole/checkpoints").newest())
    assert model.config.vocab_size == Tokenizer.load(tmp_path / "whole").vocab_size + 4
    losses = [r["validation_loss"] for r in read_metrics(tmp_path / "whole/metrics.jsonl") if "validation_loss" in r]
    assert len(losses) == 2 and losses[1] < losses[0]


def test_an_encoder_of_the_default_shape_soon_learns_from_neighbours(text: Path, tmp_path: Path, capsys: Out) -> None:
    words = "--dropout 0 --objective mlm --lr 0.01 --width 32 --context 32 --batch-size 16 --steps 150 --eval-every 150"
    assert main(["train", "--data", str(text), "--out", str(tmp_path / "run"), *FLAGS, *words.split()]) == 0
    model = Encoder.from_pretrained(Checkpoints(tmp_path / "run/checkpoints").newest())
    assert (model.config.positions, model.config.norm) == ("rope", "pre")
    bigram = float(capsys.readouterr().out.partition("bigram loss ")[2].split()[0])
    record = next(r for r in read_metrics(tmp_path / "run/metrics.jsonl") if "validation_loss" in r)
    assert record["validation_loss"] < bigram


def test_options_of_the_objectives(text: Path, tmp_path: Path) -> None:
    for number, words in enumerate(
        (
            "--objective mlm --whole-words --mask-rate 0.3",
            "--objective denoise --noise masking permutation --label-smoothing 0.1 --dtype bf16",
            "--objective mlm+nsp --norm pre --checkpoint-blocks --accumulate 2",
        )
    ):
        assert main(["train", "--data", str(text), "--out", str(tmp_path / f"{number}"), *FLAGS, *words.split()]) == 0


def test_mistakes_leave_no_folder(text: Path, tmp_path: Path, fails: Run) -> None:
    run = tmp_path / "run"
    plain = FLAGS[: FLAGS.index("--separator")]
    for words, message in [
        ([*plain, "--objective", "clm+"], "invalid choice: 'clm+'"),
        ([*plain, "--objective", "mlm+nsp"], "has 1 documents of 4 tokens or more"),
        ([*FLAGS, "--objective", "mlm", "--mask-rate", "0"], "mask_rate must be above 0"),
        ([*FLAGS, "--objective", "denoise", "--noise", "rotation"], "noise must be any of permutation, infilling"),
        ([*FLAGS, "--objective", "mlm", "--label-smoothing", "0.1"], "label_smoothing is for seq2seq and denoise"),
        ([*FLAGS, "--objective", "mlm", "--preset", "gpt2"], "no preset 'gpt2'; there are bert-base"),
        ([*FLAGS, "--separator", ""], "separator is empty"),
    ]:
        line = fails("train", "--data", str(text), "--out", str(run), *words)
        assert message in line, line
        assert not run.exists(), words


def test_an_encoder_does_not_write(text: Path, tmp_path: Path, fails: Run) -> None:
    run = tmp_path / "run"
    assert main(["train", "--data", str(text), "--out", str(run), *FLAGS, "--objective", "mlm", "--steps", "1"]) == 0
    assert "which pygpt.Encoder reads, not GPT" in fails("sample", "--model", str(run))
    assert "objective cannot change when a run is resumed" in fails("train", "--resume", str(run), "--objective", "clm")
