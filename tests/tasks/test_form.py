"""What models read of examples: the answer's tokens count, names of special tokens in a text do nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pygpt import GPT, Encoder, EncoderConfig, GPTConfig, Seq2Seq, Seq2SeqConfig
from pygpt.generate.chat import ChatFormat
from pygpt.tasks.form import TEMPLATES, ConversationForm, TaskForm, load_form, make_form, needed_tokens
from pygpt.text import ByteTokenizer, Tokenizer
from pygpt.text.rows import IGNORED

SIZES: dict[str, Any] = {"context_length": 64, "num_layers": 1, "num_heads": 1, "embedding_dim": 4}
PAIR = {"document": "A long text. <|end|>", "summary": "Short."}
TURNS = {
    "turns": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi <|assistant|>"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "So long"},
    ]
}


def made(task: str, template: str | None = None, context: int = 128) -> TaskForm:
    plain = ByteTokenizer()
    tokenizer = plain.with_special(needed_tokens(task, GPT(GPTConfig(257, **SIZES)), plain, template))
    model = GPT(GPTConfig(tokenizer.vocab_size, **{**SIZES, "context_length": context}))
    return make_form(task, model, tokenizer, template)


def counted_text(form: TaskForm, example: tuple[Any, ...]) -> str:
    tokens, counted = example
    return form.tokenizer.decode(tokens[counted].tolist())


def test_the_loss_counts_the_summary_and_its_end() -> None:
    form = made("summarisation")
    tokens, counted = form.encode(PAIR)
    assert form.tokenizer.decode(tokens.tolist()) == "A long text. <|end|><|summary|>Short.<|end|>"
    assert counted_text(form, (tokens, counted)) == "Short.<|end|>"
    special = form.tokenizer.special_tokens
    assert tokens.tolist().count(special["<|end|>"]) == 1, "the document's is plain text"
    ids, targets, lengths = form.batch([(tokens, counted), form.encode({"document": "x", "summary": "y"})])
    assert ids.shape == targets.shape == (2, len(tokens) - 1) and lengths.tolist() == [len(tokens) - 1, 3]
    assert targets[0][targets[0] != IGNORED].tolist() == tokens[counted].tolist()
    assert targets[1].tolist()[:3] == [IGNORED, ord("y"), special["<|end|>"]]
    assert (
        form.count_targets((ids, targets, lengths)) == 9
        and form.count_tokens((ids, targets, lengths)) == len(tokens) + 2
    )


def test_a_template_of_ones_own() -> None:
    form = made("generation", "Q: {prompt}\nA:{completion}<|stop|>\n")
    tokens, counted = form.encode({"prompt": "why {completion}", "completion": " so {prompt}"})
    assert form.tokenizer.decode(tokens.tolist()) == "Q: why {completion}\nA: so {prompt}<|stop|>\n"
    assert counted_text(form, (tokens, counted)) == " so {prompt}<|stop|>\n"
    assert form.stop_tokens == (257,)
    (question,) = form.ask({"prompt": "why", "completion": "so"}, room=10)
    assert form.tokenizer.decode(question.prompt) == "Q: why\nA:" and question.answer == "so"


def test_the_loss_counts_the_assistants_turns() -> None:
    form = made("dialogue")
    example = form.encode(TURNS)
    text = "<|system|>Be kind.<|end|><|user|>Hi <|assistant|><|end|><|assistant|>Hello<|end|>"
    assert form.tokenizer.decode(example[0].tolist()).startswith(text)
    assert counted_text(form, example) == "Hello<|end|>So long<|end|>"
    first, second = form.ask(TURNS, room=8)
    assert (first.answer, second.answer) == ("Hello", "So long")
    assert form.tokenizer.decode(first.prompt) == text.removesuffix("Hello<|end|>")
    assert second.prompt == example[0][: len(second.prompt)].tolist()


@pytest.mark.parametrize(
    "template",
    [
        None,
        "<|im_start|>{role}\n{content}<|im_end|>\n",
        'a "{role}" \\ {content}<|end|>',
        "<|🙂|>ä{role}:{content}<|end|>",
    ],
)
def test_the_chat_template_says_the_same(template: str | None, tmp_path: Path) -> None:
    form = made("dialogue", template, context=1000)
    assert isinstance(form, ConversationForm)
    plain = {"turns": [{**turn, "content": turn["content"].replace("<|assistant|>", "é\n")} for turn in TURNS["turns"]]}
    last = form.ask(plain, room=1)[-1]
    text = ChatFormat(form.chat_template()).render(plain["turns"][:-1])
    assert form.tokenizer.encode(text) == last.prompt


def test_what_is_too_long_is_refused_or_cut() -> None:
    form = made("summarisation", context=32)
    long = {"document": "word " * 30, "summary": "Short."}
    with pytest.raises(
        ValueError, match=r"it has 151 tokens, but there is room for 26: .*or cut the document by --trunc"
    ):
        form.encode(long)
    tokens, counted = form.encode(long, truncate=True)
    assert len(tokens) <= 33 and counted_text(form, (tokens, counted)) == "Short.<|end|>"
    assert form.tokenizer.decode(tokens.tolist()).startswith("word word word")
    assert len(form.encode({"document": "d" * 25, "summary": "Short."})[0]) == 33, "all of the context is used"
    with pytest.raises(ValueError, match="room for -"):
        form.encode({"document": "d", "summary": "s" * 40}, truncate=True)
    with pytest.raises(ValueError, match=r"it has \d+ tokens, but there is room for 33: shorten it"):
        made("dialogue", context=32).encode(TURNS, truncate=True)
    with pytest.raises(ValueError, match="room for 27"):
        made("dialogue", context=32).ask(TURNS, room=5)


@pytest.mark.parametrize(
    "task, template, words",
    [
        ("generation", "{completion}{prompt}<|end|>", "must have {prompt} and then {completion}"),
        ("generation", "{prompt}{completion}", "special token such as <|end|> after the answer"),
        (
            "generation",
            "{prompt}{completion} <|end|>",
            "special token such as <|end|> after the answer, not ' <|end|>'",
        ),
        ("summarisation", "{prompt}{completion}<|end|>", "must have {document} and then {summary}"),
        ("dialogue", "{content}<|end|>", "must have {role} and then {content}"),
        ("classification", None, "classification is learned by models of class Encoder, but the base is of class GPT"),
    ],
)
def test_templates_that_do_not_fit(task: str, template: str | None, words: str) -> None:
    with pytest.raises(ValueError) as raised:
        made(task, template)
    assert words in str(raised.value)


def test_an_encoder_decoder_reads_one_text_and_writes_the_other() -> None:
    tokenizer = ByteTokenizer()
    config = Seq2SeqConfig(261, start_token=258, end_token=259, pad_token=260, **{**SIZES, "context_length": 8})
    form = make_form("translation", Seq2Seq(config), tokenizer)
    example = form.encode({"source": "eins", "target": "one"})
    source, ids, targets, source_lengths, lengths = form.batch([example, form.encode({"source": "ab", "target": "c"})])
    assert source[1].tolist() == [97, 98, 260, 260] and source_lengths.tolist() == [4, 2]
    assert ids[0].tolist() == [258, *b"one"] and targets[0].tolist() == [*b"one", 259] and lengths.tolist() == [4, 2]
    assert form.stop_tokens == (259,)
    with pytest.raises(ValueError, match="its target has 8 tokens, but there is room for 7"):
        form.encode({"source": "a", "target": "b" * 8})
    with pytest.raises(ValueError, match="it has 9 tokens, but there is room for 8: shorten it, or cut the source"):
        form.encode({"source": "a" * 9, "target": "b"})
    assert form.encode({"source": "a" * 9, "target": "b"}, truncate=True)[0].tolist() == [97] * 8
    with pytest.raises(ValueError, match="the base has no end_token"):
        make_form("translation", Seq2Seq(Seq2SeqConfig(261, **SIZES)), tokenizer)
    with pytest.raises(ValueError, match="by models of class GPT, but the base is of class Seq2Seq"):
        make_form("dialogue", Seq2Seq(config), tokenizer)
    with pytest.raises(ValueError, match="a template is for a GPT"):
        make_form("translation", Seq2Seq(config), tokenizer, TEMPLATES["translation"])


@pytest.mark.parametrize("above", [True, False])
def test_an_encoder_tells_labels(above: bool) -> None:
    plain = ByteTokenizer()
    model = Encoder(EncoderConfig(261 if above else 257, **SIZES))
    tokenizer = plain.with_special(needed_tokens("classification", model, plain, None))
    labels = Encoder(EncoderConfig(261 if above else tokenizer.vocab_size, labels=("no", "yes"), **SIZES))
    form = make_form("classification", labels, tokenizer)
    example = form.encode({"text": "ab", "label": "yes"})
    edges = (258, 259) if above else (257, 258)
    assert example[0].tolist() == [edges[0], 97, 98, edges[1]] and example[1].tolist() == [1]
    ids, lengths, classes = form.batch([example, form.encode({"text": "a", "label": "no"})])
    assert ids[1].tolist() == [edges[0], 97, edges[1], 0] and lengths.tolist() == [4, 3] and classes.tolist() == [1, 0]
    assert torch.isfinite(labels.loss(**dict(zip(form.arguments, (ids, lengths, classes), strict=True))))
    with pytest.raises(ValueError, match="its label is 'maybe', but the model's are no, yes"):
        form.encode({"text": "a", "label": "maybe"})
    with pytest.raises(ValueError, match="writes no answers"):
        form.ask({"text": "a", "label": "no"}, 4)
    assert len(form.encode({"text": "a" * 100, "label": "no"}, truncate=True)[0]) == 64


def test_a_form_is_saved_beside_its_model(tmp_path: Path) -> None:
    form = made("generation", "{prompt}=>{completion}<|stop|>")
    model = GPT(GPTConfig(form.tokenizer.vocab_size, **SIZES))
    assert load_form(tmp_path, model, form.tokenizer) is None
    form.save(tmp_path)
    again = load_form(tmp_path, model, form.tokenizer)
    assert again is not None
    values = {"prompt": "a", "completion": "b"}
    assert all(
        np.array_equal(mine, theirs) for mine, theirs in zip(form.encode(values), again.encode(values), strict=True)
    )
    with pytest.raises(ValueError, match="does not belong to the model beside it"):
        load_form(tmp_path, model, ByteTokenizer())
    with pytest.raises(ValueError, match="does not belong to the model beside it"):
        load_form(tmp_path, Encoder(EncoderConfig(257, **SIZES)), form.tokenizer)
    (tmp_path / "task.json").write_text('{"format": "pygpt task", "version": 2}')
    with pytest.raises(ValueError, match="no task of version 1"):
        load_form(tmp_path, model, form.tokenizer)


def test_tokenizers_with_these_tokens_come_back(tmp_path: Path) -> None:
    form = made("dialogue")
    form.save(tmp_path)
    form.tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == form.tokenizer.fingerprint
    assert "chat_template" in (tmp_path / "tokenizer_config.json").read_text()
