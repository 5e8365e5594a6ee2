"""Answers and labels: those that a model writes and tells alone, whatever else is asked beside them."""

from typing import Any

import torch

from pygpt import GPT, Encoder, EncoderConfig, GPTConfig, Seq2Seq, Seq2SeqConfig
from pygpt.eval.answers import tell_labels, write_answers
from pygpt.tasks.form import LabelForm, make_form, needed_tokens
from pygpt.text import CharTokenizer
from pygpt.text.rows import SpecialTokens

SIZES: dict[str, Any] = {"context_length": 64, "num_layers": 1, "num_heads": 2, "embedding_dim": 16}
PLAIN = CharTokenizer("abcdefghijklmnopqrstuvwxyz ")


def talkative(model: Any) -> Any:
    """A model whose answers depend on what it is asked."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_()
    return model.eval()


def test_a_gpt_writes_up_to_the_end_of_an_answer() -> None:
    tokenizer = PLAIN.with_special(needed_tokens("generation", GPT(GPTConfig(PLAIN.vocab_size, **SIZES)), PLAIN, None))
    model = talkative(GPT(GPTConfig(tokenizer.vocab_size, **SIZES)))
    form = make_form("generation", model, tokenizer, None)
    prompts = ["a", "the longest of all prompts", "two", "a"]
    questions = [each for prompt in prompts for each in form.ask({"prompt": prompt, "completion": "x"}, 8, False)]
    answers = write_answers(model, form, questions, 8)
    assert answers[0] == answers[3] and len(set(answers)) > 1
    for size in (1, 3):
        assert write_answers(model, form, questions, 8, size) == answers
    for question, answer in zip(questions, answers, strict=True):
        new = model.generate(torch.tensor([question.prompt]), 8, temperature=0)[0, len(question.prompt) :].tolist()
        ends = [place for place, token in enumerate(new) if token in form.stop_tokens]
        assert answer == tokenizer.decode(new[: ends[0] if ends else None])


def test_an_encoder_decoder_writes_from_its_source() -> None:
    _, start, end, pad = SpecialTokens.above(PLAIN.vocab_size)
    tokens = {"start_token": start, "end_token": end, "pad_token": pad}
    model = talkative(Seq2Seq(Seq2SeqConfig(PLAIN.vocab_size + 4, **SIZES, **tokens)))
    form = make_form("translation", model, PLAIN, None)
    sources = ["a", "the longest of all sources"]
    questions = [each for source in sources for each in form.ask({"source": source, "target": "x"}, 8, False)]
    answers = write_answers(model, form, questions, 8)
    assert len(answers) == 2 and write_answers(model, form, questions, 8, 1) == answers


def test_labels_are_those_of_the_largest_logit() -> None:
    labels = ["no", "perhaps", "yes"]
    config = EncoderConfig(PLAIN.vocab_size + 4, **SIZES, labels=labels, pooler=True, mlm_head=False, nsp_head=False)
    model = talkative(Encoder(config))
    form = make_form("classification", model, PLAIN, None)
    assert isinstance(form, LabelForm)
    texts = ["a", "the longest of all texts", "b", "cat"]
    examples = [form.encode({"text": text, "label": "no"}, False) for text in texts]
    told = tell_labels(model, form, examples)
    assert {*told} <= {*labels} and tell_labels(model, form, examples, 1) == told
    for example, label in zip(examples, told, strict=True):
        logits = model.label_logits(model(torch.from_numpy(example[0])[None]))
        assert label == labels[int(logits.argmax())]
