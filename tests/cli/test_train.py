"""``pygpt train``: a run from text to a folder, and every mistake in one line."""

import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from pygpt import GPT, GPTConfig
from pygpt.cli import main
from pygpt.text import CharTokenizer, Tokenizer
from pygpt.train.config import SHAPE, TrainConfig, read_toml
from pygpt.train.metrics import read_metrics
from pygpt.train.run import model_config, read_config
from tests.cli.conftest import FLAGS, Out, Run, newest
from tests.disk import files_of_at_most


def test_what_a_run_leaves(finished: Path, text: Path) -> None:
    names = {path.name for path in finished.iterdir()} - {".lock"}
    assert names == {"config.toml", "tokenizer.json", "data", "metrics.jsonl", "loss.png", "checkpoints"}
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")
    config = TrainConfig.from_dict(read_toml(finished / "config.toml"), "config.toml")
    assert (config.data, config.layers, config.steps) == ((str(text),), 1, 4)
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    records = read_metrics(finished / "metrics.jsonl")
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4]
    assert [r["step"] for r in records if "validation_loss" in r] == [2, 4]
    assert [r["step"] for r in records if "sample" in r] == [3]
    assert Tokenizer.load(newest(finished)).fingerprint == Tokenizer.load(finished).fingerprint


def test_the_default_text_is_named_first(tmp_path: Path, capsys: Out) -> None:
    assert main(["train", "--out", str(tmp_path / "run"), "--width", "16", "--heads", "5"]) == 2  # before it is read
    assert capsys.readouterr().out.splitlines()[0].startswith("no --data: the text is the documentation inside Python")


def test_lines_where_there_is_no_terminal(text: Path, tmp_path: Path, capsys: Out) -> None:
    assert main(["train", "--data", str(text), "--out", str(tmp_path / "run"), *FLAGS]) == 0
    out = capsys.readouterr().out
    for shown in ("1 layers, 2 heads, 16 wide", "step 1/4", "tokens/s", "of peak", "left", "validation loss", "sample"):
        assert shown in out
    assert "\x1b" not in out, "no control characters in a file"
    assert f"pygpt sample --model {tmp_path / 'run'}" in " ".join(out.split())


def test_flags_win_over_the_file(text: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        f'data = "{text}"\ntokenizer = "char"\nlayers = 1\nheads = 2\nwidth = 8\nsteps = 3\n'
    )
    words = [
        "train",
        "--config",
        str(tmp_path / "c.toml"),
        "--steps",
        "1",
        "--context",
        "8",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(words) == 0
    saved = read_toml(tmp_path / "run" / "config.toml")
    assert (saved["width"], saved["steps"], saved["context"]) == (8, 1, 8)


def test_a_run_goes_on_further(copy: Path) -> None:
    assert main(["train", "--resume", str(copy), "--steps", "6"]) == 0
    assert newest(copy).name == "step-00000006"
    assert [r["step"] for r in read_metrics(copy / "metrics.jsonl") if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert read_toml(copy / "config.toml")["steps"] == 6


def test_a_folder_of_tokens(text: Path, tmp_path: Path, fails: Run) -> None:
    tokens, run = tmp_path / "tokens", tmp_path / "run"
    assert main(["data", str(text), "--out", str(tokens), "--tokenizer", "char"]) == 0
    assert "leave out --tokenizer" in fails("train", "--data", str(tokens), "--out", str(run), *FLAGS)
    words = ["train", "--data", str(tokens), "--out", str(run), *FLAGS[2:]]
    assert main(words) == 0
    assert not (run / "data").exists()
    (tokens / "train.bin").write_bytes(b"")
    assert "train.bin is truncated" in fails("train", "--resume", str(run), "--steps", "6")


def test_bf16_and_the_other_settings_run(text: Path, tmp_path: Path) -> None:
    more = (
        "--dtype bf16 --schedule wsd --dropout 0.1 --accumulate 2 --checkpoint-blocks --no-bias --norm post --threads 1"
    )
    assert main(["train", "--data", str(text), "--out", str(tmp_path / "run"), *FLAGS, *more.split()]) == 0


def test_every_option_of_the_shape_has_a_flag(text: Path, tmp_path: Path) -> None:
    flags = (
        "--positions rope --rope-theta 500 --norm-type rms --norm-eps 1e-6 --qk-norm --activation swiglu --head-dim 4 "
        "--kv-heads 1 --no-bias --no-tie-head --init-std 0.03 --attention-windows all 5 --embedding-dropout 0.1 "
        "--attention-dropout 0.2 --residual-dropout 0.3 --hidden 24"
    )
    assert main(["train", "--data", str(text), "--out", str(tmp_path / "run"), *FLAGS, *flags.split()]) == 0
    shape = GPT.from_pretrained(newest(tmp_path / "run")).config
    settings = read_config(tmp_path / "run")
    assert shape == model_config(settings, shape.vocab_size)
    assert (shape.norm_type, shape.qk_norm, shape.rope_theta, shape.head_dim) == ("rms", True, 500, 4)
    assert shape.attention_windows == (None, 5) and shape.residual_dropout == 0.3
    covered = {*SHAPE.values(), "attention_windows", "vocab_size"}
    assert covered == {field.name for field in fields(GPTConfig)}


def test_mistakes_leave_no_folder(text: Path, tmp_path: Path, fails: Run) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "bad.toml").write_text("stepz = 3\n")
    (tmp_path / "file").touch()
    run = tmp_path / "run"
    for words, message in [
        (["--preset", "gpt5"], "gpt5"),
        (["--width", "15"], "embedding_dim"),
        (["--positions", "rotary"], "positions"),
        (["--norm-type", "batch"], "norm_type must be one of layer, rms"),
        (["--attention-windows", "all", "0"], "attention_windows must be numbers of at least 1 or 'all', not '0'"),
        (["--device", "tpu"], "device must be cpu, cuda or cuda:N, not 'tpu'"),
        (["--device", "cpu:3"], "device is 'cpu:3', but there is no such one here"),
        (["--prompt", "the cat sat on the mat"], "prompt has 22 tokens, and a context of 16 leaves no room after it"),
        (["--prompt", "é"], "the character 'é'"),
        (["--prompt", ""], "the prompt is empty"),
        (["--lr", "nan"], "lr must be above 0, not nan"),
        (["--threads", "100000"], "threads must be at most 1024"),
        (["--batch-size", "1000000000"], "a step needs at least"),
        (["--batch-size", "2", "--accumulate", "1000000000"], "a step needs at least"),
        (["--layers", "100000000"], "GiB (328,000,"),
        (["--config", str(tmp_path / "bad.toml")], "unknown key 'stepz'; did you mean 'steps'?"),
        (["--config", str(tmp_path / "absent.toml")], "absent.toml"),
        (["--data", str(tmp_path / "absent.txt")], "there is no file or folder"),
        (["--data", str(tmp_path / "empty.txt")], "the corpus is empty"),
        (["--data", str(tmp_path / "short.txt")], "tokens, but context_length 16 needs at least 17"),
        (["--tokenizer", "words"], "tokenizer must be char, byte, bpe or a folder that holds one, not 'words'"),
        (["--tokenizer", str(tmp_path)], "tokenizer.json"),
        (["--out", str(tmp_path / "file")], "is there already"),
        (["--out", "/proc/pygpt/run"], "/proc/pygpt"),
    ]:
        line = fails("train", "--data", str(text), "--out", str(run), *FLAGS, *words)
        assert line.startswith("pygpt train: error: ") and message in line, line
        assert not run.exists(), words
    assert not [name for name in tmp_path.iterdir() if name.name.startswith(".")], "nothing half-written"


def test_mistakes_when_going_on(copy: Path, tmp_path: Path, fails: Run) -> None:
    def resume(*words: str) -> str:
        return fails("train", "--resume", str(copy), "--steps", "6", *words)

    assert "is there already; continue it with --resume" in fails("train", "--out", str(copy))
    assert "it has no config.toml" in fails("train", "--resume", str(tmp_path))
    assert "layers cannot change when a run is resumed" in resume("--layers", "2")
    assert "leave out --out" in resume("--out", str(tmp_path / "other"))
    assert "steps is 3, but" in resume("--steps", "3")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}

    def broken(name: str, change: Callable[[bytes], bytes], message: str) -> None:
        path = copy / name if (copy / name).exists() else newest(copy) / name
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        assert message in resume(), name
        path.write_bytes(whole)

    broken("config.toml", lambda whole: whole[: len(whole) // 2] + b'"', "config.toml")
    broken("model.safetensors", lambda whole: whole[:-1], "model.safetensors")
    broken("model.safetensors", lambda whole: b"", "model.safetensors")
    broken("training.safetensors", lambda whole: whole[:-1], "training.safetensors is truncated")
    broken("training.json", lambda whole: whole[: len(whole) // 2], "training.json is not valid JSON")
    broken("training.json", lambda whole: b'{"format": "another"}', "is not of a pygpt checkpoint")
    broken("training.json", lambda whole: whole.replace(b'"version": 1', b'"version": 7'), "a checkpoint of version 7")
    other = CharTokenizer("another alphabet of more characters"[:3])
    other.save(tmp_path)
    broken("tokenizer.json", lambda whole: (tmp_path / "tokenizer.json").read_bytes(), "tokenizer")
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_full_disk_ends_the_run_and_keeps_its_checkpoint(copy: Path, fails: Run) -> None:
    kept = newest(copy)
    with files_of_at_most(20_000):
        line = fails("train", "--resume", str(copy), "--steps", "6", "--save-every", "1")
    assert "File too large" in line
    assert newest(copy) == kept
    assert main(["train", "--resume", str(copy), "--steps", "6"]) == 0


def test_a_folders_name_is_no_markup(text: Path, tmp_path: Path, capsys: Out) -> None:
    for name in ("[red]", "[/x]", r"$\x$"):
        assert main(["train", "--data", str(text), "--out", str(tmp_path / name), *FLAGS]) == 0
        assert f"finished; see {tmp_path / name}/loss.png" in "".join(capsys.readouterr().out.splitlines())


def test_a_tokenizer_that_knows_no_new_line_needs_a_prompt(text: Path, tmp_path: Path, fails: Run) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\nthe\ncat\ndog\nsat\non\nmat\nand\n,\n.\n")
    words = ["train", "--data", str(text), *FLAGS, "--tokenizer", str(tmp_path), "--out", str(tmp_path / "run")]
    assert "the tokenizer knows no new line to begin with: give a prompt" in fails(*words)
    assert "the prompt ' ' has no tokens" in fails(*words, "--prompt", " ")
    assert main([*words, "--prompt", "the cat"]) == 0


def test_a_run_has_its_own_tokens(text: Path, tmp_path: Path) -> None:
    """Whatever the place of its text holds when it goes on."""
    words = ["--data", str(text.parent), "--out", str(tmp_path / "run"), *FLAGS]
    assert main(["train", *words]) == 0
    assert main(["data", str(text), "--tokenizer", "byte", "--out", str(tmp_path / "tokens")]) == 0
    there = [Path(shutil.copy(path, text.parent)) for path in (tmp_path / "tokens").iterdir()]
    try:
        assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "6"]) == 0
    finally:
        for path in there:
            path.unlink()


def test_one_process_at_a_time(copy: Path, fails: Run) -> None:
    import fcntl

    with (copy / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process is training in" in fails("train", "--resume", str(copy), "--steps", "6")


def test_a_training_that_diverges_ends_with_code_1(text: Path, tmp_path: Path, capsys: Out) -> None:
    words = ["--steps", "50", "--lr", "1e30", "--min-lr", "1e30", "--patience", "3", "--warmup", "0"]
    assert main(["train", "--data", str(text), "--out", str(tmp_path / "run"), *FLAGS, *words]) == 1
    assert "3 steps in a row were skipped, the last because the loss is nan" in " ".join(
        capsys.readouterr().out.split()
    )
    assert newest(tmp_path / "run").name == "step-00000004"
