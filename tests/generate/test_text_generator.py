from __future__ import annotations

import pytest
import torch

from pygpt import GPT, Encoder, EncoderConfig, GPTConfig, Seq2Seq, Seq2SeqConfig, TextGenerator
from pygpt.generate.chat import ChatFormat
from pygpt.tasks.form import make_form
from pygpt.text import BPETokenizer, ByteTokenizer, CharTokenizer, Document, Finish, Tokenizer, WordList
from tests.generate.test_chat import TEMPLATE, message

SIZES = {"num_layers": 1, "num_heads": 2, "embedding_dim": 16}
TEXT = "One two. 你好，世界！ هل أنت بخير؟ 👩‍👩‍👧 é!"


def bpe() -> Tokenizer:
    return BPETokenizer.train([Document("", "the cat sat on the mat " * 5)], 280)


def gpt(tokenizer: Tokenizer, context_length: int = 256, more: int = 0) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=tokenizer.vocab_size + more, context_length=context_length, **SIZES)).eval()


def seq2seq(tokenizer: Tokenizer) -> Seq2Seq:
    torch.manual_seed(0)
    first = tokenizer.vocab_size
    tokens = {"start_token": first, "end_token": first + 1, "pad_token": first + 2}
    return Seq2Seq(Seq2SeqConfig(vocab_size=first + 3, context_length=256, **SIZES, **tokens)).eval()


@pytest.fixture(params=["bytes", "bpe", "characters"])
def tokenizer(request) -> Tokenizer:
    if request.param == "characters":
        return CharTokenizer("".join(sorted(set(TEXT + "the cat sat on TL;DR:\n."))))
    return ByteTokenizer() if request.param == "bytes" else bpe()


def say(generator: TextGenerator, text: str, extra: int = 0, **options) -> str:
    """Have a model say a text, by forcing it, and ``extra`` tokens more."""
    size = len(generator.tokenizer.encode(text))
    return generator.generate("the cat", size + extra, prefixes=[text], **options)


@pytest.mark.parametrize("make", [gpt, seq2seq])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"penalty_alpha": 0.5, "top_k": 2}])
def test_text_becomes_text(tokenizer, make, options):
    generator = TextGenerator(make(tokenizer), tokenizer)
    assert say(generator, TEXT, **options) == TEXT
    assert say(generator, TEXT, keep_prompt=True, **options) == "the cat" + TEXT
    assert say(generator, TEXT, stop="世界", **options) == "One two. 你好，"
    assert say(generator, TEXT, stop=["🎉"], bad_words=["zzz"], **options) == TEXT
    several = generator.generate(["the", "cat sat"], len(tokenizer.encode("One")), prefixes=["One"], **options)
    assert several == ["One", "One"]


def test_half_a_character_is_none():
    generator = TextGenerator(gpt(ByteTokenizer()), ByteTokenizer())
    emoji = list("👩".encode())
    assert generator.generate("the", 3, prefixes=[emoji[:3]]) == ""
    assert generator.generate("the", 4, prefixes=[emoji]) == "👩"


@pytest.mark.parametrize("make", [gpt, seq2seq])
def test_no_character_is_cut_in_a_stream(tokenizer, make):
    generator = TextGenerator(make(tokenizer), tokenizer)
    for options in ({}, {"penalty_alpha": 0.5, "top_k": 2}):
        parts: list[str] = []
        assert say(generator, TEXT, stream=parts.append, **options) == TEXT
        assert "".join(parts) == TEXT and "\ufffd" not in "".join(parts) and len(parts) > 10
        parts = []
        assert say(generator, TEXT, stream=parts.append, stop=["هل", "世界人"], **options) == "One two. 你好，世界！ "
        assert "".join(parts) == "One two. 你好，世界！ ", "what could begin a stop string is held back"


def test_a_stream_tells_finished_sentences(tokenizer):
    generator = TextGenerator(gpt(tokenizer), tokenizer)
    for finish, right, most in (
        (Finish(trim=True), "One two. 你好，世界！ هل أنت بخير؟ 👩‍👩‍👧 é!", 4),
        (Finish(mask=WordList(["two", "世界"])), "One ***. 你好，**！ هل أنت بخير؟ 👩‍👩‍👧 é!", 5),
        (Finish(collapse=1), TEXT, 1),
    ):
        parts: list[str] = []
        assert say(generator, TEXT, stream=parts.append, finish=finish) == right
        assert "".join(parts) == right and len(parts) <= most
    assert say(generator, "One two. 你好", finish=Finish(trim=True)) == "One two."


def test_words_may_be_text():
    tokenizer = bpe()
    generator = TextGenerator(gpt(tokenizer), tokenizer)
    for options in ({}, {"num_beams": 3}, {"penalty_alpha": 0.6}):
        text = generator.generate("the", 12, force_words=["mat", "dog"], bad_words=["cat", "a c"], **options)
        assert "mat" in text and "dog" in text and "cat" not in text and "a c" not in text
    two = generator.generate("the", 5, num_beams=3, num_return_sequences=2)
    assert isinstance(two, list) and len(two) == 2 and two[0] != two[1]
    four = generator.generate(["the", "a"], 5, num_samples=2, keep_prompt=True)
    assert [text[:1] for text in four] == ["t", "t", "a", "a"]


def test_documents_are_summarised():
    tokenizer = bpe()
    model = gpt(tokenizer, context_length=64)
    generator = TextGenerator(model, tokenizer)
    document = "the cat sat. the mat sat on the cat. the cat sat on the mat."
    prompt = torch.tensor([tokenizer.encode(document + "\n\nTL;DR:")])
    found = model.beam_search(prompt, 8, num_beams=4, no_repeat_ngram_size=3, stop_tokens=[tokenizer.end_of_document])
    right = tokenizer.decode(found.tokens[0, prompt.shape[1] : found.lengths[0]].tolist()).split("<|endoftext|>")[0]
    assert generator.summarise(document, 8, finish=Finish()).rstrip("\ufffd") == right.rstrip("\ufffd")
    long = "the cat sat. " * 40
    with pytest.raises(ValueError, match=r"context_length is 64, but the text has .* tokens and max_new_tokens is 8"):
        generator.summarise(long, 8)
    read: list[int] = []
    generator.model.generate = lambda ids, *_, **__: read.extend(ids[0].tolist()) or _stop()  # type: ignore[assignment]
    with pytest.raises(StopIteration):
        generator.summarise(long, 8, overflow="cut", temperature=0.0)
    fits = tokenizer.decode(read).removesuffix("\n\nTL;DR:")
    assert (
        fits.endswith("sat.")
        and long.startswith(fits)
        and 56 - len(tokenizer.encode(" the cat sat.")) < len(read) <= 56
    )


def _stop():
    raise StopIteration


def test_a_fine_tuned_model_reads_its_template():
    tokenizer = bpe().with_special(["<|summary|>", "<|end|>"])
    model = gpt(tokenizer)
    generator = TextGenerator(model, tokenizer, form=make_form("summarisation", model, tokenizer))
    read = generator._read("the <|summary|> cat", 8)
    assert read.count(tokenizer.special_tokens["<|summary|>"]) == 1
    assert read[-1] == tokenizer.special_tokens["<|summary|>"]
    streamed: list[str] = []
    text = generator.summarise("the cat", 8, stream=streamed.append)
    assert text == "".join(streamed) and "<|" not in text
    other = TextGenerator(seq2seq(tokenizer), tokenizer)
    assert isinstance(other.summarise("the cat sat", 8), str)


def test_no_prompts_give_no_texts():
    tokenizer = bpe()
    for model in (gpt(tokenizer), seq2seq(tokenizer)):
        generator = TextGenerator(model, tokenizer)
        for options in ({}, {"num_beams": 2}, {"penalty_alpha": 0.5}):
            assert generator.generate([], 4, **options) == []


def test_it_chats():
    pytest.importorskip("jinja2", reason="jinja2, which reads chat templates, is not installed")
    tokenizer = bpe()
    model = gpt(tokenizer)
    generator = TextGenerator(model, tokenizer, ChatFormat(TEMPLATE, "", (tokenizer.end_of_document,)))
    parts: list[str] = []
    answer = generator.chat("the cat", 12, stream=parts.append)
    assert answer == "".join(parts)
    assert answer == generator.chat([message("user", "the cat")], 12)
    longer = [message("user", "the cat"), message("assistant", answer), message("user", "<|endoftext|>")]
    assert isinstance(generator.chat(longer, 3, temperature=1.0, seed=3), str)
    with pytest.raises(ValueError, match=r"the conversation has .* tokens, and the model reads 256"):
        generator.chat("x" * 300)
    with pytest.raises(ValueError, match="message 0 should be of role 'user'"):
        generator.chat([message("assistant")])
    with pytest.raises(ValueError, match="overflow must be 'error' or 'cut', not 'slide'"):
        generator.chat("the cat", overflow="slide")
    with pytest.raises(ValueError, match="no chat template"):
        TextGenerator(model, tokenizer).chat("hello")


def test_a_long_conversation_loses_its_oldest_turns():
    pytest.importorskip("jinja2", reason="jinja2, which reads chat templates, is not installed")
    tokenizer = bpe()
    generator = TextGenerator(gpt(tokenizer), tokenizer, ChatFormat(TEMPLATE, "", (tokenizer.end_of_document,)))
    system = message("system", "sit")
    turns = [message(role, f"{number} " + "x" * 40) for number in range(6) for role in ("user", "assistant")][:-1]
    given = [dict(turn) for turn in turns]
    with pytest.raises(ValueError, match=r"the conversation has .* tokens, and the model reads 256"):
        generator.chat(turns, 10)
    for begin in ([], [system]):
        answer = generator.chat([*begin, *turns], 10, overflow="cut")
        fitting = [
            first
            for first in range(0, len(turns), 2)
            if len(generator._chat.encode([*begin, *turns[first:]], tokenizer)) <= 256 - 10
        ]
        assert 0 < fitting[0] < len(turns) - 1, "some are forgotten, some remain"
        assert answer == generator.chat([*begin, *turns[fitting[0] :]], 10)
    assert turns == given
    with pytest.raises(ValueError, match=r"the conversation has .* tokens, and the model reads 256"):
        generator.chat([*turns, message("assistant"), message("user", "x" * 300)], overflow="cut")


def test_models_are_loaded_with_what_belongs_to_them(tmp_path):
    tokenizer = bpe()
    gpt(tokenizer).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    text = TextGenerator(gpt(tokenizer), tokenizer).generate("the", 5, seed=3)
    loaded = TextGenerator.load(tmp_path)
    assert loaded.generate("the", 5, seed=3) == text
    with pytest.raises(ValueError, match="no chat template"):
        loaded.chat("hello")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages[0].content }}"}')
    assert isinstance(TextGenerator.load(tmp_path).chat("hello", 3), str)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        TextGenerator.load(tmp_path / "absent")


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda g: g.generate(""), ValueError, "the text is empty"),
        (lambda g: g.generate(3), TypeError, "'int' object is not iterable"),
        (lambda g: g.generate([3]), TypeError, "a text must be a string, not 3"),
        (lambda g: g.generate("x" * 250), ValueError, "context_length is 256, but the text has 250 tokens"),
        (lambda g: g.generate("a", stream=print, num_beams=2), ValueError, "stream is for one text"),
        (lambda g: g.generate(["a", "b"], stream=print), ValueError, "stream is for one text"),
        (lambda g: g.generate("a", stream=print, num_samples=2), ValueError, "stream is for one text"),
        (lambda g: g.generate("a", no_such_option=2), TypeError, "no_such_option"),
        (lambda g: g.generate("a", temperature=-1.0), ValueError, "temperature must be at least 0"),
        (lambda g: g.generate("a", stop=[""]), ValueError, "stop must hold strings that are not empty"),
        (lambda g: g.summarise(" \n"), ValueError, "the text is empty"),
        (lambda g: g.summarise("", overflow="cut"), ValueError, "the text is empty"),
        (lambda g: g.summarise("a", overflow="slide"), ValueError, "overflow must be 'error' or 'cut', not 'slide'"),
        (lambda g: g.summarise("a" * 300, 250, overflow="cut"), ValueError, "context_length is 256"),
        (lambda g: TextGenerator(g.model, ByteTokenizer(["a"] * 1 + ["b"])), ValueError, "do not belong together"),
        (lambda g: TextGenerator(None, g.tokenizer), TypeError, "model must be a GPT or a Seq2Seq, .* not a NoneType"),
    ],
)
def test_bad_input(call, error, words):
    tokenizer = ByteTokenizer()
    with pytest.raises(error, match=words):
        call(TextGenerator(gpt(tokenizer), tokenizer))


def test_encoders_do_not_write():
    with pytest.raises(TypeError, match="not a Encoder"):
        TextGenerator(Encoder(EncoderConfig(vocab_size=257, context_length=8, **SIZES)), ByteTokenizer())
