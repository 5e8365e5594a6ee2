"""``pygpt train --base --task``: tasks are learned, go on to the same bits, keep their best; mistakes are one line."""

import json
import random
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pygpt import GPT, Encoder, Seq2Seq
from pygpt.cli import main
from pygpt.models import Transformer, adapters
from pygpt.text import Tokenizer
from pygpt.train.checkpoint import Checkpoints, load_values
from pygpt.train.metrics import read_metrics
from pygpt.train.saved import load_model, load_saved
from tests.cli.conftest import Run
from tests.models.llama_file import gguf_file

SHAPE = shlex.split(
    "--tokenizer char --layers 1 --heads 2 --width 16 --context 48 --batch-size 4 --steps 2 --sample-every 0 "
    "--validation 0.2 --separator '\\n\\n'"
)
TUNE = shlex.split(
    "--steps 12 --batch-size 4 --accumulate 2 --eval-every 4 --save-every 3 --lr 0.03 --validation 0.2 --dropout 0.1 "
    "--sample-every 5 --log-every 100"
)
LONG = shlex.split("--steps 150 --eval-every 0 --save-every 0 --sample-every 0")  # with no plot before the end
OBJECTIVES = {"gpt": "clm", "encoder": "mlm", "encoder-decoder": "seq2seq"}
ANIMALS = ("cat", "cow", "hen", "fox", "owl", "ant")
Out = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pre-trained model of each kind."""
    folder = tmp_path_factory.mktemp("bases")
    parts = [f"the {animal} sat on the mat.\nand the dog sat on the {animal}.\n" * 4 for animal in ANIMALS]
    (folder / "text.txt").write_text("\n\n".join(parts))
    for kind, objective in OBJECTIVES.items():
        words = ["--data", str(folder / "text.txt"), "--objective", objective, "--out", str(folder / kind)]
        assert main(["train", *words, *SHAPE]) == 0
    return {kind: folder / kind for kind in OBJECTIVES}


def example(task: str, animal: str) -> dict[str, Any]:
    if task == "dialogue":
        talk = [("user", f"the {animal}"), ("assistant", animal)]
        return {"turns": [{"role": role, "content": content} for role, content in talk]}
    given, asked = {
        "generation": ("prompt", "completion"),
        "summarisation": ("document", "summary"),
        "translation": ("source", "target"),
        "classification": ("text", "label"),
    }[task]
    return {given: f"the {animal} sat on the mat.", asked: animal[0] if task == "classification" else animal}


def write(path: Path, *lines: Any) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def examples(task: str, count: int = 40) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [example(task, draw.choice(ANIMALS)) for _ in range(count)]


def test_a_gguf_file_is_a_base(tmp_path: Path, capsys: Out) -> None:
    """The base of the run is a folder, which needs the file no more."""
    pytest.importorskip("gguf", reason="the package gguf, which reads GGUF files, is not installed")
    base = gguf_file(tmp_path / "base.gguf", "the cat sat on the mat. the dog. " * 9)
    data = write(tmp_path / "data.jsonl", *examples("generation"))
    words = ["train", "--base", str(base), "--task", "generation", "--data", data, "--out", str(tmp_path / "run")]
    assert main([*words, *TUNE, "--lora-rank", "2"]) == 0
    kept, form = GPT.from_pretrained(tmp_path / "run" / "base"), load_saved(base)
    assert kept.config.positions == "rope" and kept.config.norm_type == "rms"
    right = form.model.token_embedding.weight
    assert torch.equal(kept.token_embedding.weight[: len(right)], right)
    base.unlink()
    assert load_saved(tmp_path / "run").form is not None
    assert main(["sample", "--model", str(tmp_path / "run"), "--prompt", "the cat", "--max-new-tokens", "2"]) == 0
    capsys.readouterr()


def files(run: Path) -> dict[str, bytes]:
    newest = Checkpoints(run / "checkpoints").newest()
    return {path.name: path.read_bytes() for path in newest.iterdir() if path.name != "training.json"}


CASES = {
    "generation": ("gpt", GPT, ""),
    "dialogue": ("gpt", GPT, "--lora-rank 2"),
    "summarisation": ("encoder-decoder", Seq2Seq, "--truncate"),
    "translation": ("encoder-decoder", Seq2Seq, "--lora-rank 3 --lora-alpha 3 --lora-targets qkv down"),
    "classification": ("encoder", Encoder, ""),
}


@pytest.mark.parametrize("task", CASES)
def test_a_task_is_learned_and_goes_on_to_the_same_bits(
    task: str, bases: dict[str, Path], tmp_path: Path, capsys: Out
) -> None:
    base, kind, flags = CASES[task]
    data = write(tmp_path / "t.jsonl", *examples(task))
    words = ["--base", str(bases[base]), "--task", task, "--data", data, *TUNE, *flags.split()]
    assert main(["train", "--out", str(tmp_path / "whole"), *words]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "12 steps of 8 examples" in out and ("→" in out) == (kind is not Encoder)
    assert ("accuracy" in out) == (kind is Encoder) and ("million are trained" in out) == ("lora" in flags)
    (tmp_path / "t.jsonl").unlink()  # the run has all that it needs
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for path in Checkpoints(tmp_path / "cut/checkpoints").paths():
        if path.name > "step-00000009":
            shutil.rmtree(path)
    assert Checkpoints(tmp_path / "cut/checkpoints").newest().name == "step-00000009"
    assert main(["train", "--resume", str(tmp_path / "cut")]) == 0
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    newest = [load_values(Checkpoints(tmp_path / run / "checkpoints").newest())["values"] for run in ("cut", "whole")]
    assert newest[0]["best"] == newest[1]["best"] and newest[0]["stale"] == newest[1]["stale"]
    losses = [r["validation_loss"] for r in read_metrics(tmp_path / "whole/metrics.jsonl") if "validation_loss" in r]
    assert len(losses) == 3 and min(losses) < losses[0]
    saved = load_saved(tmp_path / "whole")
    assert isinstance(saved.model, kind) and saved.form is not None and saved.form.task == task
    assert saved.model.config.dropout == 0.1 and not saved.model.training
    whole, alone = "model.safetensors" in files(tmp_path / "whole"), "adapter.safetensors" in files(tmp_path / "whole")
    assert (whole, alone) == ("lora" not in flags, "lora" in flags)


def test_interrupted_inside_a_step_it_goes_on_to_the_same_bits(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path / "t.jsonl", *examples("generation"))
    words = ["--base", str(bases["gpt"]), "--task", "generation", "--data", data, *TUNE, "--lora-rank", "2"]
    assert main(["train", "--out", str(tmp_path / "whole"), *words]) == 0
    from pygpt.train.trainer import Trainer

    plain = Trainer._forward_backward
    calls = 0

    def stops(self: Trainer, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        self.stop_requested = calls == 11
        plain(self, *arguments)

    monkeypatch.setattr(Trainer, "_forward_backward", stops)
    assert main(["train", "--out", str(tmp_path / "cut"), *words]) == 130
    assert Checkpoints(tmp_path / "cut/checkpoints").newest().name == "step-00000005-part-01"
    monkeypatch.setattr(Trainer, "_forward_backward", plain)
    assert main(["train", "--resume", str(tmp_path / "cut")]) == 0
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_the_best_checkpoint_is_kept_and_training_stops_early(
    bases: dict[str, Path], tmp_path: Path, capsys: Out
) -> None:
    """Completions that follow from nothing: the more is learned by heart, the worse the validation loss."""
    draw = random.Random(1)
    pairs = [{"prompt": "the", "completion": "".join(draw.choices("acehnostwx", k=20))} for _ in range(24)]
    data = write(tmp_path / "t.jsonl", *pairs)
    run = tmp_path / "run"
    words = ["--steps", "400", "--lr", "0.05", "--eval-every", "5", "--early-stopping", "3", "--keep", "1"]
    base = ["--base", str(bases["gpt"]), "--task", "generation", "--data", data, "--out", str(run)]
    assert main(["train", *base, *TUNE, *words]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "stopped early: 3 evaluations in a row were no better than that of step" in out
    losses = {r["step"]: r["validation_loss"] for r in read_metrics(run / "metrics.jsonl") if "validation_loss" in r}
    best = min(losses, key=lambda step: losses[step])
    assert max(losses) == best + 15 < 400
    names = [path.name for path in Checkpoints(run / "checkpoints").paths()]
    assert names == [f"step-{best:08d}", f"step-{max(losses):08d}"]
    assert Checkpoints(run / "checkpoints").best().name == names[0] == load_saved(run).folder.name
    before = files(run)
    assert main(["train", "--resume", str(run)]) == 0, "it has ended"
    assert files(run) == before


def test_merged_and_alone(bases: dict[str, Path], tmp_path: Path) -> None:
    """Adapters on the base as it was give what the run's model gives."""
    import torch

    data = write(tmp_path / "t.jsonl", *examples("generation"))
    run = tmp_path / "run"
    words = ["--base", str(bases["gpt"]), "--task", "generation", "--data", data, "--out", str(run)]
    assert main(["train", *words, *TUNE, "--lora-rank", "2"]) == 0
    model, tokenizer = load_model(run)
    base, base_tokenizer = load_model(bases["gpt"])
    assert tokenizer.vocab_size == base_tokenizer.vocab_size + 2
    again, _ = adapters.load(base, Checkpoints(run / "checkpoints").best())
    ids = torch.tensor([tokenizer.encode("the cat<|answer|>")])
    assert torch.equal(again.eval()(ids), model(ids))
    assert torch.equal(load_saved(run, torch.bfloat16).model(ids), model.bfloat16()(ids))
    model, _ = load_model(run)
    model.save_pretrained(tmp_path / "merged")
    assert torch.equal(GPT.from_pretrained(tmp_path / "merged")(ids), model(ids))
    other = Transformer.from_pretrained(run / "base")
    with torch.no_grad():
        other.get_parameter("token_embedding.weight")[0, 0] += 1
    with pytest.raises(ValueError, match="adapters of another model: its weights are others"):
        adapters.load(other, Checkpoints(run / "checkpoints").best())


def test_bad_lines_are_counted(bases: dict[str, Path], tmp_path: Path, capsys: Out, fails: Run) -> None:
    lines = [*examples("summarisation"), '{"document": "x"', {"document": " ", "summary": "x"}]
    lines.append({"document": "the cat " * 20, "summary": "cat"})
    lines.append({"document": "the CAT", "summary": "cat"})
    data = write(tmp_path / "t.jsonl", *lines)
    words = ["--base", str(bases["gpt"]), "--task", "summarisation", "--data", data, *TUNE]
    for gone, (number, message) in enumerate(
        [
            (41, "it is no JSON"),
            (42, "its document is empty"),
            (43, "it has 161 tokens, but there is room for 45: shorten it, or cut the document by --truncate"),
            (44, "the character 'C' (U+0043)"),
        ]
    ):
        write(tmp_path / "t.jsonl", *lines[:40], *["" for _ in range(gone)], *lines[40 + gone :])
        line = fails("train", "--out", str(tmp_path / "run"), *words)
        assert f"line {number}: " in line and message in line, line
        assert not (tmp_path / "run").exists()
    write(tmp_path / "t.jsonl", *lines)
    assert main(["train", "--out", str(tmp_path / "run"), *words, "--skip-bad"]) == 0
    assert "4 lines were left out of" in " ".join(capsys.readouterr().out.split())
    kept = [(tmp_path / f"run/data/{split}.jsonl").read_text().count("\n") for split in ("train", "validation")]
    assert kept == [32, 8]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing half-written"


def test_mistakes_leave_no_folder(bases: dict[str, Path], tmp_path: Path, fails: Run) -> None:
    good = write(tmp_path / "t.jsonl", *examples("generation"))
    labels = write(tmp_path / "l.jsonl", *examples("classification"))
    one = write(tmp_path / "one.jsonl", *[example("classification", "cat")] * 5)
    few = write(tmp_path / "few.jsonl", example("generation", "cat"))
    gpt, encoder = str(bases["gpt"]), str(bases["encoder"])
    run = tmp_path / "run"
    for words, message in [
        (["--task", "generation", "--data", good], "task is given, but base is not"),
        (["--base", gpt, "--data", good], "base is given, but task is not"),
        (["--base", gpt, "--task", "poetry", "--data", good], "invalid choice: 'poetry'"),
        (["--base", str(tmp_path / "absent"), "--task", "generation", "--data", good], "there is no folder"),
        (["--base", gpt, "--task", "generation", "--data", str(tmp_path / "absent")], "data must be one file of JSON"),
        (["--base", gpt, "--task", "generation", "--data", good, good], "data must be one file of JSON Lines"),
        (["--base", gpt, "--task", "generation", "--data", good, "--layers", "2"], "layers is decided by the base"),
        (["--base", gpt, "--task", "generation", "--data", good, "--tokenizer", "bpe"], "tokenizer is decided by the"),
        (["--base", gpt, "--task", "generation", "--data", good, "--objective", "mlm"], "'mlm' is of pre-training"),
        (["--base", gpt, "--task", "generation", "--data", good, "--template", "{prompt}"], "{prompt} and then {comp"),
        (["--base", encoder, "--task", "generation", "--data", good], "is learned by models of class GPT or Seq2Seq"),
        (
            ["--base", gpt, "--task", "classification", "--data", labels],
            "by models of class Encoder, but the base is of",
        ),
        (["--base", encoder, "--task", "classification", "--data", one], "has one label, 'c'"),
        (["--base", gpt, "--task", "generation", "--data", few, "--validation", "0.9"], "1 usable examples, too few"),
        (
            ["--base", gpt, "--task", "generation", "--data", good, "--lora-rank", "99"],
            "lora_rank must be from 1 to 16",
        ),
        (["--base", gpt, "--task", "generation", "--data", good, "--lora-alpha", "1"], "need a lora_rank"),
        (["--data", good, "--lora-rank", "1"], "lora_rank is for fine-tuning"),
        (["--data", good, "--skip-bad"], "skip_bad is for fine-tuning"),
        (
            ["--base", gpt, "--task", "generation", "--data", good, "--lora-rank", "1", "--lora-targets", "gate"],
            "lora_targets must be any of qkv, out, up, down, not 'gate'",
        ),
        (
            ["--base", gpt, "--task", "generation", "--data", good, "--batch-size", "1000000000"],
            "a step needs at least",
        ),
    ]:
        line = fails("train", "--out", str(run), *words)
        assert message in line, line
        assert not run.exists(), words
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing half-written"


def test_a_quantised_base_is_refused(bases: dict[str, Path], tmp_path: Path, fails: Run) -> None:
    """Its weights are whole numbers; further tokens would have made a model of the same shape without them."""
    model, tokenizer = load_model(bases["gpt"])
    model.quantize("int8").save_pretrained(tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    data = write(tmp_path / "t.jsonl", *examples("generation"))
    words = ["--base", str(tmp_path / "base"), "--task", "generation", "--data", data, "--out", str(tmp_path / "run")]
    assert "holds a quantised model, which cannot be trained" in fails("train", *words)
    assert not (tmp_path / "run").exists()


def test_a_base_that_knows_its_labels_keeps_them(bases: dict[str, Path], tmp_path: Path, fails: Run) -> None:
    data = write(tmp_path / "l.jsonl", *examples("classification"))
    words = ["--task", "classification", *TUNE, "--eval-every", "0", "--save-every", "0"]
    assert main(["train", "--base", str(bases["encoder"]), "--out", str(tmp_path / "a"), "--data", data, *words]) == 0
    cats = write(tmp_path / "c.jsonl", *[example("classification", "cat")] * 10)
    assert main(["train", "--base", str(tmp_path / "a"), "--out", str(tmp_path / "b"), "--data", cats, *words]) == 0
    assert load_saved(tmp_path / "b").model.config.labels == load_saved(tmp_path / "a").model.config.labels
    write(tmp_path / "c.jsonl", *[example("classification", "cat")] * 5, {"text": "the emu", "label": "e"})
    line = fails("train", "--base", str(tmp_path / "a"), "--out", str(tmp_path / "d"), "--data", cats, *words)
    assert "line 6: its label is 'e', but the model's are a, c, f, h, o" in line


def test_a_dialogue_is_a_chat_model(bases: dict[str, Path], tmp_path: Path, capsys: Out, fails: Run) -> None:
    data = write(tmp_path / "d.jsonl", *examples("dialogue"))
    words = ["--task", "dialogue", "--data", data, *TUNE]
    assert main(["train", "--base", str(bases["gpt"]), "--out", str(tmp_path / "a"), *words, *LONG]) == 0
    capsys.readouterr()
    assert main(["chat", "--model", str(tmp_path / "a"), "--prompt", "the owl"]) == 0
    assert capsys.readouterr().out.strip() == "owl"
    # Fine-tuned again, it keeps its template; elsewhere a folder's own chat template has to be said in our form.
    assert main(["train", "--base", str(tmp_path / "a"), "--out", str(tmp_path / "b"), *words]) == 0
    assert (tmp_path / "a/task.json").read_bytes() == (tmp_path / "b/task.json").read_bytes()
    folder = Checkpoints(tmp_path / "a/checkpoints").best()
    (folder / "task.json").unlink()
    assert "has a chat template of its own: say by --template" in fails(
        "train", "--base", str(folder), "--out", str(tmp_path / "c"), *words
    )
    template = ["--template", "<|{role}|>{content}<|end|>"]
    assert main(["train", "--base", str(folder), "--out", str(tmp_path / "c"), *words, *template]) == 0
    assert Tokenizer.load(tmp_path / "c").vocab_size == Tokenizer.load(tmp_path / "a").vocab_size
