"""What a model reads of an example, and what it should write: the form of a task.

A `pygpt.GPT` reads a template, filled: special tokens such as ``<|end|>``, text, and the example's fields, in which
names of special tokens are plain text. The loss counts what the last field and whatever follows it are made of, in a
dialogue the assistant's turns. A `pygpt.Seq2Seq` reads the given field and writes the other. A `pygpt.Encoder` reads a
text and tells its label. A form is saved beside the model, in ``task.json``.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pygpt.files import atomic_write_json, read_json
from pygpt.models import GPT, Encoder, Seq2Seq, Transformer
from pygpt.tasks.records import ROLES, TASKS
from pygpt.text import Tokenizer
from pygpt.text.rows import IGNORED, SpecialTokens, source_and_target, stacked

Ids = npt.NDArray[np.int64]

FILE = "task.json"
FORMAT = "pygpt task"
VERSION = 1
SPECIAL = re.compile(r"<\|[^|<>{}]+\|>")
EDGES = ("[CLS]", "[SEP]")  # of what an encoder reads, where its tokenizer has no others

TEMPLATES = {
    "generation": "{prompt}<|answer|>{completion}<|end|>",
    "summarisation": "{document}<|summary|>{summary}<|end|>",
    "translation": "{source}<|translation|>{target}<|end|>",
    "dialogue": "<|{role}|>{content}<|end|>",
}


class Question(NamedTuple):
    """What is given, and what was asked for.

    Attributes:
        prompt: what the model reads.
        answer: the text that it should write.
    """

    prompt: list[int]
    answer: str


class TaskForm(ABC):
    """The form of a task for one kind of model, with one tokenizer.

    Args:
        task: one of ``TASKS``.
        tokenizer: has the special tokens.
        context_length: the most tokens that the model reads.

    Attributes:
        arguments: of the model's loss, what `batch` gives.
        targets: which of them holds what the loss counts.
        stop_tokens: what an answer ends with.
    """

    arguments: ClassVar[tuple[str, ...]]
    targets: ClassVar[int]
    stop_tokens: tuple[int, ...] = ()

    def __init__(self, task: str, tokenizer: Tokenizer, context_length: int) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.context_length = context_length

    @abstractmethod
    def encode(self, values: dict[str, Any], truncate: bool = False) -> tuple[Ids, ...]:
        """An example's arrays, for `batch`.

        Args:
            values: of a record.
            truncate: cut the given text's end where it is too long for the model.

        Raises:
            ValueError: if the model cannot read it.
        """

    @abstractmethod
    def batch(self, examples: Sequence[tuple[Ids, ...]]) -> tuple[Tensor, ...]:
        """Several examples as the arguments of the model's loss."""

    def ask(self, values: dict[str, Any], room: int, truncate: bool = False) -> list[Question]:
        """What a record asks of a model that writes.

        Args:
            values: of the record.
            room: the tokens that an answer may have.
            truncate: cut the given text's end where it is too long for the model.

        Raises:
            ValueError: if prompt and answer do not fit into the model's context.
        """
        raise ValueError(f"a model for {self.task} writes no answers")

    def count_targets(self, batch: tuple[Tensor, ...]) -> int:
        """How many targets of a batch the loss counts."""
        return int((batch[self.targets] != IGNORED).sum())

    def count_tokens(self, batch: tuple[Tensor, ...]) -> int:
        """How many tokens of a batch the model reads."""
        return batch[0].numel()

    def save(self, folder: Path) -> None:
        """Write the form beside a model. Raises: OSError, see `pygpt.files`."""
        atomic_write_json(folder / FILE, {"format": FORMAT, "version": VERSION, "task": self.task, **self._content()})

    def _content(self) -> dict[str, Any]:
        return {}

    def _shortened(self, length: int, limit: int, text: str, truncate: bool) -> str:
        """A beginning of ``text``, shorter, for what has ``length`` tokens to have ``limit``. Raises: ValueError."""
        name = TASKS[self.task][0]
        if not truncate or not text:
            advice = "" if truncate or self.task == "dialogue" else f", or cut the {name} by --truncate"
            raise ValueError(f"it has {length} tokens, but there is room for {limit}: shorten it{advice}")
        return text[: min(len(text) - 1, len(text) * limit // length)]


class _WrittenForm(TaskForm):
    """What a `GPT` reads: one row of tokens, some of which the loss counts."""

    arguments = ("ids", "targets", "lengths")
    targets = 1

    def batch(self, examples: Sequence[tuple[Ids, ...]]) -> tuple[Tensor, ...]:
        """(ids, targets, lengths) of (tokens, which of them count)."""
        ids = [tokens[:-1] for tokens, _ in examples]
        targets = [np.where(counted[1:], tokens[1:], IGNORED) for tokens, counted in examples]
        return stacked(ids), stacked(targets, IGNORED), torch.tensor([len(row) for row in ids])

    def count_tokens(self, batch: tuple[Tensor, ...]) -> int:
        """How many tokens the model reads; what follows a row's length is none."""
        return int(batch[2].sum())

    def _literal(self, text: str) -> list[int]:
        return self.tokenizer.encode_literally([text])[0] if text else []

    def _fill(self, template: str, values: dict[str, str]) -> list[int]:
        """The tokens of a template whose ``{fields}`` are replaced."""
        names = sorted(self.tokenizer.special_tokens, key=len, reverse=True)
        pattern = "|".join(map(re.escape, names))
        tokens: list[int] = []
        text = ""
        for part in re.split(rf"({pattern}|\{{\w+\}})" if names else r"(\{\w+\})", template):
            if part in self.tokenizer.special_tokens:
                tokens += [*self._literal(text), self.tokenizer.special_tokens[part]]
                text = ""
            else:
                text += values[part[1:-1]] if part.startswith("{") and part[1:-1] in values else part
        return tokens + self._literal(text)

    def _stop(self, tail: str) -> int:
        name = SPECIAL.match(tail)
        if name is None:
            raise ValueError(f"the template must have a special token such as <|end|> after the answer, not {tail!r}")
        return self.tokenizer.special_tokens[name[0]]


class PairForm(_WrittenForm):
    """Generation, summarisation and translation for a `GPT`: one text after the other.

    Args:
        template: has each of the task's two fields once, in their order, the special tokens, and one directly after
            the second field, which ends the answer.

    Raises:
        ValueError: if the template does not fit the task.
    """

    def __init__(self, task: str, tokenizer: Tokenizer, context_length: int, template: str) -> None:
        super().__init__(task, tokenizer, context_length)
        self.template = template
        given, asked = TASKS[task]
        if re.findall(r"\{(\w+)\}", template) != [given, asked]:
            raise ValueError(f"the template of {task} must have {{{given}}} and then {{{asked}}}, not {template!r}")
        self._given = given
        self._head, _, self._tail = template.partition(f"{{{asked}}}")
        self.stop_tokens = (self._stop(self._tail),)

    def encode(self, values: dict[str, Any], truncate: bool = False) -> tuple[Ids, ...]:
        """(tokens, which of them the loss counts)."""
        answer = self._literal(values[TASKS[self.task][1]]) + self._fill(self._tail, {})
        prompt = self._prompt(values, self.context_length + 1 - len(answer), truncate)  # the last token is not read
        return np.array(prompt + answer), np.repeat([False, True], [len(prompt), len(answer)])

    def ask(self, values: dict[str, Any], room: int, truncate: bool = False) -> list[Question]:
        """The given text's prompt."""
        prompt = self._prompt(values, self.context_length - room, truncate)
        return [Question(prompt, values[TASKS[self.task][1]])]

    def _prompt(self, values: dict[str, Any], limit: int, truncate: bool) -> list[int]:
        text = values[self._given]
        while len(prompt := self._fill(self._head, {self._given: text})) > limit:
            text = self._shortened(len(prompt), limit, text, truncate)
        return prompt

    def _content(self) -> dict[str, Any]:
        return {"template": self.template}


class ConversationForm(_WrittenForm):
    """Dialogue for a `GPT`: turn after turn, of which the assistant's count.

    Args:
        template: of a turn: has ``{role}``, then ``{content}`` and a special token directly after it, which ends a
            turn.

    Raises:
        ValueError: if the template does not fit.
    """

    def __init__(self, task: str, tokenizer: Tokenizer, context_length: int, template: str) -> None:
        super().__init__(task, tokenizer, context_length)
        self.template = template
        if re.findall(r"\{(\w+)\}", template) != ["role", "content"]:
            raise ValueError(f"the template of a turn must have {{role}} and then {{content}}, not {template!r}")
        self._head, _, self._tail = template.partition("{content}")
        self.stop_tokens = (self._stop(self._tail),)

    def encode(self, values: dict[str, Any], truncate: bool = False) -> tuple[Ids, ...]:
        """(tokens, which of them the loss counts)."""
        parts, counted = [], []
        for turn in values["turns"]:
            head, rest = self._turn(turn)
            parts += [head, rest]
            counted += [False] * len(head) + [turn["role"] == "assistant"] * len(rest)
        tokens = np.array([token for part in parts for token in part])
        if len(tokens) - 1 > self.context_length:
            self._shortened(len(tokens), self.context_length + 1, "", truncate)
        return tokens, np.array(counted)

    def ask(self, values: dict[str, Any], room: int, truncate: bool = False) -> list[Question]:
        """The conversation before each of the assistant's turns."""
        questions, read = [], []
        for turn in values["turns"]:
            head, rest = self._turn(turn)
            read += head
            if turn["role"] == "assistant":
                if len(read) > self.context_length - room:
                    self._shortened(len(read), self.context_length - room, "", truncate)
                questions.append(Question(list(read), turn["content"]))
            read += rest
        return questions

    def chat_template(self) -> str:
        """The template of a conversation in Jinja, as `pygpt.generate.chat` and Hugging Face's tokenizers take it."""
        # Not in ASCII: JSON writes characters past U+FFFF as surrogates, which Jinja does not put together.
        before, _, after = (json.dumps(part, ensure_ascii=False) for part in self._head.partition("{role}"))
        begun, tail = (
            json.dumps(part, ensure_ascii=False) for part in (self._head.replace("{role}", "assistant"), self._tail)
        )
        return (
            f"{{% for message in messages %}}"
            f"{{{{ {before} ~ message['role'] ~ {after} ~ message['content'] ~ {tail} }}}}"
            f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {begun} }}}}{{% endif %}}"
        )

    def save(self, folder: Path) -> None:
        """Write the form, and the chat template as other programs read it. Raises: OSError, see `pygpt.files`."""
        super().save(folder)
        name = next(name for name, token in self.tokenizer.special_tokens.items() if token in self.stop_tokens)
        atomic_write_json(folder / "tokenizer_config.json", {"chat_template": self.chat_template(), "eos_token": name})

    def _turn(self, turn: dict[str, str]) -> tuple[list[int], list[int]]:
        """The tokens before a turn's content, and from there on."""
        head = self._fill(self._head.replace("{role}", turn["role"]), {})
        return head, self._literal(turn["content"]) + self._fill(self._tail, {})

    def _content(self) -> dict[str, Any]:
        return {"template": self.template}


class SourceForm(TaskForm):
    """Generation, summarisation and translation for a `Seq2Seq`: it reads one text and writes the other.

    Args:
        special: what targets begin and end with, and what pads them.
    """

    arguments = ("source", "ids", "targets", "source_lengths", "lengths")
    targets = 2

    def __init__(self, task: str, tokenizer: Tokenizer, context_length: int, special: SpecialTokens) -> None:
        super().__init__(task, tokenizer, context_length)
        self._special = special
        self.stop_tokens = (special.end,)

    def encode(self, values: dict[str, Any], truncate: bool = False) -> tuple[Ids, ...]:
        """(source, target)."""
        target = self.tokenizer.encode_literally([values[TASKS[self.task][1]]])[0]
        if len(target) + 1 > self.context_length:
            name, room = TASKS[self.task][1], self.context_length - 1
            raise ValueError(f"its {name} has {len(target)} tokens, but there is room for {room}")
        return np.array(self._source(values, truncate)), np.array(target)

    def batch(self, examples: Sequence[tuple[Ids, ...]]) -> tuple[Tensor, ...]:
        """(source, ids, targets, source_lengths, lengths)."""
        return source_and_target(examples, self._special)

    def ask(self, values: dict[str, Any], room: int, truncate: bool = False) -> list[Question]:
        """The given text."""
        return [Question(self._source(values, truncate), values[TASKS[self.task][1]])]

    def count_tokens(self, batch: tuple[Tensor, ...]) -> int:
        """How many tokens both sides read."""
        return int(batch[3].sum() + batch[4].sum())

    def _source(self, values: dict[str, Any], truncate: bool) -> list[int]:
        text = values[TASKS[self.task][0]]
        while len(source := self.tokenizer.encode_literally([text])[0]) > self.context_length:
            text = self._shortened(len(source), self.context_length, text, truncate)
        return source


class LabelForm(TaskForm):
    """Classification for an `Encoder`: ``[start] text [end]`` has a label.

    Args:
        edges: the tokens around a text.
        labels: their names, in the model's order.
    """

    arguments = ("ids", "lengths", "labels")
    targets = 2

    def __init__(
        self, task: str, tokenizer: Tokenizer, context_length: int, edges: tuple[int, int], labels: Sequence[str]
    ) -> None:
        super().__init__(task, tokenizer, context_length)
        self.labels = tuple(labels)
        self._edges = edges

    def encode(self, values: dict[str, Any], truncate: bool = False) -> tuple[Ids, ...]:
        """(ids, label's number)."""
        if values["label"] not in self.labels:
            raise ValueError(f"its label is {values['label']!r}, but the model's are {', '.join(self.labels)}")
        text, limit = values["text"], self.context_length - 2
        while len(tokens := self.tokenizer.encode_literally([text])[0]) > limit:
            text = self._shortened(len(tokens), limit, text, truncate)
        start, end = self._edges
        return np.array([start, *tokens, end]), np.array([self.labels.index(values["label"])])

    def batch(self, examples: Sequence[tuple[Ids, ...]]) -> tuple[Tensor, ...]:
        """(ids, lengths, labels)."""
        ids, labels = zip(*examples, strict=True)
        return stacked(ids), torch.tensor([len(row) for row in ids]), torch.from_numpy(np.concatenate(labels))

    def count_tokens(self, batch: tuple[Tensor, ...]) -> int:
        """How many tokens the model reads."""
        return int(batch[1].sum())


KINDS: dict[type[Transformer], tuple[str, ...]] = {
    GPT: ("generation", "summarisation", "translation", "dialogue"),
    Seq2Seq: ("generation", "summarisation", "translation"),
    Encoder: ("classification",),
}


def needed_tokens(task: str, model: Transformer, tokenizer: Tokenizer, template: str | None) -> list[str]:
    """The special tokens that a form has and a tokenizer may lack.

    Raises:
        ValueError: if the kind of model does not learn the task, or takes no template.
    """
    kind = type(model)
    if task not in KINDS[kind]:
        able = " or ".join(each.__name__ for each, tasks in KINDS.items() if task in tasks)
        raise ValueError(f"{task} is learned by models of class {able}, but the base is of class {kind.__name__}")
    if kind is GPT:
        filled = [(template or TEMPLATES[task]).replace("{role}", role) for role in ROLES]
        return list(dict.fromkeys(name for text in filled for name in SPECIAL.findall(text)))
    if template is not None:
        raise ValueError(f"a template is for a GPT, but the base is of class {kind.__name__}")
    return list(EDGES) if kind is Encoder and model.config.vocab_size == tokenizer.vocab_size else []


def make_form(task: str, model: Any, tokenizer: Tokenizer, template: str | None = None) -> TaskForm:
    """The form of a task for a model.

    Args:
        task: one of ``TASKS``.
        model: a `GPT`, `Seq2Seq` or `Encoder`; the last with labels.
        tokenizer: the model's; it has all `needed_tokens`.
        template: for a `GPT`; None: the task's own.

    Raises:
        ValueError: if model or template do not fit the task.
    """
    needed_tokens(task, model, tokenizer, template)
    common = task, tokenizer, model.config.context_length
    if isinstance(model, GPT):
        kind = ConversationForm if task == "dialogue" else PairForm
        return kind(*common, TEMPLATES[task] if template is None else template)
    if isinstance(model, Seq2Seq):
        config = model.config
        if config.end_token is None:
            raise ValueError("the base has no end_token, so that it cannot learn where an answer ends")
        return SourceForm(*common, SpecialTokens(-1, config.start_token, config.end_token, config.pad_token))
    if model.config.vocab_size == tokenizer.vocab_size:
        edges = tokenizer.special_tokens[EDGES[0]], tokenizer.special_tokens[EDGES[1]]
    else:
        special = SpecialTokens.above(tokenizer.vocab_size)
        edges = special.start, special.end
    return LabelForm(*common, edges, model.config.labels)


def load_form(folder: str | Path, model: Any, tokenizer: Tokenizer) -> TaskForm | None:
    """The form that was saved beside a model; None if there is none.

    Raises:
        ValueError: if it is damaged or of a newer version, or does not fit the model.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("format") != FORMAT or content.get("version") != VERSION or content.get("task") not in TASKS:
        raise ValueError(f"{path} is no task of version {VERSION} that this pygpt knows")
    try:
        return make_form(content["task"], model, tokenizer, content.get("template"))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} does not belong to the model beside it: {error}") from None
