"""What lm-evaluation-harness asks of a model, answered from its logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pygpt import GPT, GPTConfig
from pygpt.eval.likelihood import continuations
from pygpt.text import ByteTokenizer

pytest.importorskip("lm_eval", reason="the package lm-eval is not installed (extra pygpt[harness])")

TOKENIZER = ByteTokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned a line by heart."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    model = GPT(GPTConfig(vocab_size=257, context_length=24, num_layers=1, num_heads=2, embedding_dim=32))
    ids = torch.tensor([TOKENIZER.encode("one two three. four")])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
    model.save_pretrained(path)
    TOKENIZER.save(path)
    return path


def request(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_requests_are_answered(folder: Path) -> None:
    from lm_eval.api.registry import get_model

    from pygpt.eval.harness import HarnessModel

    model = get_model("pygpt").create_from_arg_string(f"folder={folder}", {"batch_size": 2})
    assert isinstance(model, HarnessModel)
    right, wrong, spaced = model.loglikelihood(
        [request("loglikelihood", "one", " two"), request("loglikelihood", "one", " six"),
         request("loglikelihood", "one ", "two")]
    )  # fmt: skip
    assert right[1] and not wrong[1] and right[0] > wrong[0] and spaced == right
    (empty,) = model.loglikelihood([request("loglikelihood", "", "one")])
    expected = continuations(model.model, [([256], TOKENIZER.encode("one"))])[0]
    assert empty == (expected.logprob, expected.greedy)
    options = {"until": ["."], "max_gen_toks": 12}
    assert model.generate_until([request("generate_until", "one tw", options)]) == ["o three"]
    with pytest.raises(ValueError, match="unknown option 'dtype'"):
        HarnessModel(folder, dtype="float16")


def test_all_of_a_text_is_counted_once(folder: Path) -> None:
    from pygpt.eval.harness import HarnessModel

    model = HarnessModel(folder)
    text = "one two three. four" * 4
    (total,) = model.loglikelihood_rolling([request("loglikelihood_rolling", text)])
    tokens = [256, *TOKENIZER.encode(text)]
    expected, at = 0.0, 1
    while at < len(tokens):  # windows of 24, each after the token before it; the last one sees more
        end = min(at + 24, len(tokens))
        expected += continuations(model.model, [(tokens[max(0, end - 25) : at], tokens[at:end])])[0].logprob
        at = end
    assert total == pytest.approx(expected, rel=1e-6)
    assert model.loglikelihood_rolling([request("loglikelihood_rolling", "")]) == [0]


def test_a_task_of_the_harness_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of multiple choice over a local file: nothing is downloaded."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import lm_eval
    from lm_eval.tasks import TaskManager

    from pygpt.eval.harness import HarnessModel

    lines = [
        {"query": "one", "choices": ["six", "two"], "answer": 1},
        {"query": "one two", "choices": ["three", "a"], "answer": 0},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = {
        "task": "local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "q.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    results = lm_eval.simple_evaluate(
        model=HarnessModel(folder), tasks=[task], task_manager=TaskManager(), bootstrap_iters=0
    )
    assert results["results"]["local"]["acc,none"] == 1.0
