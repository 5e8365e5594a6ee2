"""From text to text: what is asked becomes tokens, a model writes, and what it wrote becomes text that can be shown."""

from __future__ import annotations

import bisect
import codecs
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pygpt.generate.chat import ChatFormat, chat_format, load_chat
from pygpt.models import GPT, Seq2Seq
from pygpt.tasks.form import TaskForm
from pygpt.tasks.records import TASKS
from pygpt.text import Finish, Tokenizer
from pygpt.text.sentences import sentence_ends

SUMMARY = "\n\nTL;DR:"
"""After a document, what a model that was not fine-tuned continues with a summary. Source: Radford et al., 2019."""


class TextGenerator:
    """Lets a model write, continue, summarise and answer.

    Args:
        model: a `pygpt.GPT`, or a `pygpt.Seq2Seq`, which reads what is given and writes beside it.
        tokenizer: the model's.
        chat: how conversations become text; `chat` needs it.
        form: of the task that the model was fine-tuned for, which says what the model reads of a text.

    Raises:
        ValueError: if the tokenizer has more tokens than the model.
        TypeError: if the model does not write.
    """

    def __init__(
        self,
        model: GPT | Seq2Seq,
        tokenizer: Tokenizer,
        chat: ChatFormat | None = None,
        form: TaskForm | None = None,
    ) -> None:
        if not isinstance(model, GPT | Seq2Seq):
            raise TypeError(f"model must be a GPT or a Seq2Seq, which write, not a {type(model).__name__}")
        if tokenizer.vocab_size > model.config.vocab_size:
            tokenizer.check_model_vocabulary(model.config.vocab_size)
        self.model = model
        self.tokenizer = tokenizer
        self._chat = chat
        self._form = form
        self._text = _TextTokens(tokenizer, model.config.vocab_size, () if chat is None else chat.stop_tokens)

    @classmethod
    def load(cls, source: str | Path, *, keep_quantized: bool = True) -> TextGenerator:
        """Load a model with what belongs to it.

        Args:
            source: a GGUF file; a folder with a model and a tokenizer; or a run of ``pygpt train``.
            keep_quantized: leave weights of a GGUF file in 4 bits where all of the blocks' are; on the CPU.

        Raises:
            FileNotFoundError: if there is no such file or folder.
            ValueError: naming what is missing, damaged, or does not fit together.
        """
        from pygpt.train.saved import load_saved  # which takes a while to import

        if Path(source).is_file():
            return cls(*load_chat(source, keep_quantized=keep_quantized))
        model, tokenizer, form, folder = load_saved(source)
        return cls(model, tokenizer, chat_format(folder, tokenizer), form)

    def generate(
        self,
        prompt: str | Sequence[str],
        max_new_tokens: int = 64,
        *,
        finish: Finish | None = None,
        keep_prompt: bool = False,
        stream: Callable[[str], None] | None = None,
        **options: Any,
    ) -> str | list[str]:
        """Let the model write after a prompt, or what belongs to it.

        Args:
            prompt: or several.
            max_new_tokens: the most tokens to write.
            finish: what is done with the text.
            keep_prompt: give the prompt before what was written.
            stream: is called with each part of the text as it comes, in which no character is cut; with ``finish``,
                with whole sentences, or all at once where repetitions are collapsed. Not for several texts or beams.
            options: with ``num_beams`` above 1, those of the model's ``beam_search``; with ``penalty_alpha``, those of
                ``contrastive_search``; else those of ``generate``. Words of ``force_words`` and ``prefixes`` may be
                text. By default, all tokens that stand for no text end one.

        Returns:
            The text without the prompt and without special tokens, up to a stop string; a list, if several prompts were
            given or several texts asked for.

        Raises:
            ValueError: naming what does not fit: an empty prompt, or one that is too long, among others.
            TypeError: if a type does not fit.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        rows = [self._read(text, max_new_tokens) for text in prompts]
        texts = self._write(rows, max_new_tokens, finish or Finish(), stream, options)
        if keep_prompt:
            times = len(texts) // max(1, len(prompts))
            texts = [prompts[number // times] + text for number, text in enumerate(texts)]
        return texts if len(texts) != 1 or not isinstance(prompt, str) else texts[0]

    def summarise(
        self,
        document: str,
        max_new_tokens: int = 64,
        *,
        overflow: str = "error",
        finish: Finish | None = None,
        stream: Callable[[str], None] | None = None,
        **options: Any,
    ) -> str:
        """Let the model summarise a document.

        A model that was fine-tuned for it reads the document as it has learned to; another GPT reads "TL;DR:" after it.
        Without options this is beam search with 4 beams in which no three tokens occur twice; while the text is
        streamed, greedy decoding.

        Args:
            document: its text.
            max_new_tokens: the most tokens of the summary.
            overflow: what to do with a document that is too long for the model: ``"error"``, or ``"cut"``: read as many
                of its first sentences as fit.
            finish: what is done with the summary; None: it ends with its last whole sentence.
            stream: as in `generate`.
            options: as in `generate`.

        Raises:
            ValueError: naming what does not fit: an empty document, or one that is too long, among others.
            TypeError: if a type does not fit.
        """
        if overflow not in ("error", "cut"):
            raise ValueError(f"overflow must be 'error' or 'cut', not {overflow!r}")
        if self._form is not None and self._form.task != "summarisation":
            raise ValueError(f"the model was fine-tuned for {self._form.task}, not for summarisation")
        usual = {"num_beams": 4, "no_repeat_ngram_size": 3} if stream is None else {"temperature": 0.0}
        reads = self._read if overflow == "error" else self._read_what_fits
        read = reads(document, max_new_tokens, "" if self._form else SUMMARY)
        return self._write([read], max_new_tokens, finish or Finish(trim=True), stream, options or usual)[0]

    def chat(
        self,
        messages: str | Sequence[dict[str, str]],
        max_new_tokens: int = 256,
        *,
        overflow: str = "error",
        finish: Finish | None = None,
        stream: Callable[[str], None] | None = None,
        **options: Any,
    ) -> str:
        """Let the model answer.

        Args:
            messages: the user's message; or a conversation, whose messages have ``role`` ("system" at the start, "user"
                and "assistant" in turn, "user" last) and ``content``.
            max_new_tokens: the most tokens of the answer, if the context has room for them.
            overflow: what to do with a conversation that is too long for the model: ``"error"``, or ``"cut"``: forget
                its oldest questions, with their answers, until the new answer or a quarter of the context has room.
            finish: what is done with the answer.
            stream: as in `generate`.
            options: as in `generate`. Without any, decoding is greedy.

        Raises:
            ValueError: naming what does not fit: a role out of order, or a conversation that is too long, among others.
            TypeError: if a type does not fit.
        """
        if overflow not in ("error", "cut"):
            raise ValueError(f"overflow must be 'error' or 'cut', not {overflow!r}")
        if self._chat is None:
            raise ValueError("this model has no chat template: it is no model for conversations")
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else [*messages]
        tokens = self._chat.encode(turns, self.tokenizer)
        context = self.model.config.context_length
        if overflow == "cut":
            oldest = int(turns[0]["role"] == "system")
            while len(tokens) > context - min(max_new_tokens, context // 4) and len(turns) > oldest + 1:
                del turns[oldest : oldest + 2]
                tokens = self._chat.encode(turns, self.tokenizer)
        room = context - len(tokens)
        if room < 1:
            raise ValueError(f"the conversation has {len(tokens)} tokens, and the model reads {len(tokens) + room}")
        options = options or {"temperature": 0.0}
        return self._write([tokens], min(room, max_new_tokens), finish or Finish(), stream, options)[0]

    def _read(self, text: str, max_new_tokens: int, ending: str = "") -> list[int]:
        """The tokens that the model reads of a text. Raises: ValueError if it is empty or too long."""
        if not isinstance(text, str):
            raise TypeError(f"a text must be a string, not {text!r}")
        if not text or ((self._form or ending) and not text.strip()):
            raise ValueError("the text is empty: there is nothing to read")
        if self._form is not None:
            if self._form.task == "dialogue":
                raise ValueError("the model was fine-tuned for dialogue: let it chat")
            given, asked = TASKS[self._form.task]
            return self._form.ask({given: text, asked: ""}, max_new_tokens)[0].prompt
        if ending or isinstance(self.model, Seq2Seq):
            tokens = self.tokenizer.encode_literally([text])[0]
            tokens += self.tokenizer.encode(ending) if isinstance(self.model, GPT) else []
        else:
            tokens = self.tokenizer.encode(text)
        limit = self.model.config.context_length
        if len(tokens) > limit - (max_new_tokens if isinstance(self.model, GPT) else 0):
            raise ValueError(
                f"context_length is {limit}, but the text has {len(tokens)} tokens and max_new_tokens is "
                f"{max_new_tokens}; shorten the text"
            )
        return tokens

    def _read_what_fits(self, text: str, max_new_tokens: int, ending: str) -> list[int]:
        """The tokens of as many of a text's first sentences as fit; or of a part of the first."""

        def read(size: int) -> list[int] | None:
            try:
                return self._read(text[:size], max_new_tokens, ending)
            except ValueError:
                return None

        if (whole := read(len(text))) is not None:
            return whole
        sizes: Sequence[int] = list(sentence_ends(text))
        if not sizes or read(sizes[0]) is None:
            sizes = range(1, len(text) + 1)
        count = bisect.bisect_left(sizes, 1, key=lambda size: int(read(size) is None))
        return self._read(text[: sizes[max(0, count - 1)]] if sizes else text, max_new_tokens, ending)

    def _write(
        self,
        rows: Sequence[list[int]],
        max_new_tokens: int,
        finish: Finish,
        stream: Callable[[str], None] | None,
        options: dict[str, Any],
    ) -> list[str]:
        """The texts that the model writes for rows of tokens."""
        options = {**options, "tokenizer": self._text, "stop": _strings(options.get("stop", ()))}
        for name in ("force_words", "prefixes"):
            if name in options:
                options[name] = [self._as_tokens(word, name) for word in options[name]]
        beams = options.get("num_beams", 1)
        if stream is not None and (beams != 1 or len(rows) != 1 or options.get("num_samples", 1) != 1):
            raise ValueError("stream is for one text that is written token by token, not for several, nor for beams")
        told = _Told(self._text, options["stop"], finish, stream)
        method: Callable[..., Any] = self.model.beam_search
        if beams == 1:
            options.pop("num_beams", None)
            method = self.model.contrastive_search if "penalty_alpha" in options else self.model.generate
            options |= {"return_logprobs": True, "stream": None if stream is None else told.push}
        starts = [len(row) for row in rows]
        ids = torch.zeros(len(rows), max(starts, default=1), dtype=torch.int64)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        ids = ids.to(next(self.model.parameters()).device)
        lengths = torch.tensor(starts, dtype=torch.int64, device=ids.device)
        if isinstance(self.model, GPT):
            options = {"stop_tokens": sorted(self._text.others), **options}
            out = method(ids, max_new_tokens, prompt_lengths=lengths, **options)
        else:
            out = method(ids, max_new_tokens, source_lengths=lengths, **options)
            starts = [1] * len(rows)
        texts = []
        for number, (row, length) in enumerate(zip(out.tokens.tolist(), out.lengths.tolist(), strict=True)):
            start = starts[number * len(rows) // len(out.tokens)]
            one = told if stream is not None else _Told(self._text, options["stop"], finish, None)
            texts.append(one.end(row[start:length]))
        return texts

    def _as_tokens(self, word: Any, name: str) -> Any:
        """A word that is text as tokens: a beginning as it stands, another also after a space."""
        if not isinstance(word, str):
            return word
        tokens = self.tokenizer.encode_literally([word])[0]
        if name == "prefixes":
            return tokens
        try:
            spaced = self.tokenizer.encode_literally([" " + word])[0]
        except ValueError:  # of a tokenizer that knows no space
            return tokens
        return [tokens, spaced]


class _TextTokens:
    """A tokenizer's bytes, none for tokens that stand for no text: special ones, and the model's own.

    Args:
        tokenizer: knows the text of the tokens.
        vocab_size: of the model, which may have further tokens.
        more: further tokens that are no text.

    Attributes:
        others: the tokens that stand for no text.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, more: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.others = {*tokenizer.special_tokens.values(), *range(tokenizer.vocab_size, vocab_size), *more}
        if tokenizer.end_of_document is not None:
            self.others.add(tokenizer.end_of_document)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token's text."""
        return b"" if token in self.others else self._tokenizer.token_bytes(token)


class _Told:
    """What has been written so far, and how much of it the caller was told.

    Args:
        tokens: give text.
        stop: strings at which the text ends; they are no part of it.
        finish: what is done with the text.
        stream: is told; None: nobody is.
    """

    def __init__(
        self, tokens: _TextTokens, stop: tuple[str, ...], finish: Finish, stream: Callable[[str], None] | None
    ) -> None:
        self._tokens = tokens
        self._stop = stop
        self._finish = finish
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._told = 0  # characters

    def push(self, row: int, token: int) -> None:
        """Take a token; tell what no later one can change."""
        self._text += self._decoder.decode(self._tokens.token_bytes(token))
        text = self._text[: self._end()]
        # The beginning of a stop string may become one.
        held = max(
            (size for stop in self._stop for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0
        )
        text = text[: len(text) - held]
        if self._finish.changes:
            if self._finish.collapse is not None:
                return
            last = len(text) - (0 if self._finish.mask is None else self._finish.mask.longest)
            text = text[: max((end for end in sentence_ends(text) if end < last), default=0)]
        self._tell(self._finish(text))

    def end(self, tokens: Sequence[int]) -> str:
        """Take all tokens, tell the rest, give the text. A character that the last token has cut is none."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = decoder.decode(b"".join(map(self._tokens.token_bytes, tokens)))
        text = self._finish(self._text[: self._end()])
        self._tell(text)
        return text

    def _end(self) -> int:
        """Where the text ends: at the first stop string."""
        found = (self._text.find(stop) for stop in self._stop)
        return min((place for place in found if place >= 0), default=len(self._text))

    def _tell(self, text: str) -> None:
        if self._stream is not None and len(text) > self._told:
            self._stream(text[self._told :])
            self._told = len(text)


def _strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop)
