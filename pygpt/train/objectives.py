"""The pre-training objectives by name: which model learns what from text, and how its progress is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pygpt.models import GPT, Encoder, EncoderConfig, GPTConfig, Seq2Seq, Seq2SeqConfig, Transformer, TransformerConfig
from pygpt.text import TokenFile, Tokenizer
from pygpt.text.rows import SpecialTokens
from pygpt.train.config import TrainConfig
from pygpt.train.examples import Continuations, Examples, MaskedTokens, NoisyTexts, SentencePairs, Words

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Objective:
    """What is learned.

    Attributes:
        model: the class that learns it.
        config: of its configuration.
        targets: which argument of the loss holds the targets.
        previous: which argument holds the tokens of which targets are the next ones; None: targets stand at the places
            of the ids that they are behind.
        inputs: the arguments whose tokens the model reads.
        special: whether the model's vocabulary has `SpecialTokens` above the tokenizer's.
        shape: fields of the configuration, where neither a preset nor a flag says otherwise.
        make: the examples; None: `pygpt.text.BatchLoader` makes them.
    """

    model: type[Transformer]
    config: type[TransformerConfig]
    targets: int
    previous: int | None
    inputs: tuple[int, ...]
    special: bool
    shape: dict[str, Any]
    make: Callable[[TokenFile, int, SpecialTokens, TrainConfig, Tokenizer], Examples] | None

    def count_targets(self, batch: Batch) -> int:
        """How many targets count."""
        return int((batch[self.targets] != -100).sum())

    def count_tokens(self, batch: Batch) -> int:
        """How many tokens the model reads."""
        return sum(batch[i].numel() for i in self.inputs)

    def neighbours(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens as the model sees them, and the targets that follow them: what `pygpt.train.baselines` looks at."""
        if self.previous is not None:
            return batch[self.previous], batch[self.targets]
        return batch[0][:, :-1], batch[self.targets][:, 1:]

    def vocab_size(self, tokenizer: Tokenizer) -> int:
        """The model's vocabulary."""
        return tokenizer.vocab_size + (len(SpecialTokens._fields) if self.special else 0)

    def settings(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What the model's configuration takes from the special tokens."""
        if self.config is not Seq2SeqConfig:
            return {}
        special = SpecialTokens.above(tokenizer.vocab_size)
        return {"start_token": special.start, "end_token": special.end, "pad_token": special.pad}


def _masked(
    file: TokenFile, context: int, special: SpecialTokens, config: TrainConfig, tokenizer: Tokenizer
) -> MaskedTokens:
    rate = 0.15 if config.mask_rate is None else config.mask_rate
    return MaskedTokens(file, context, special, rate, Words(tokenizer) if config.whole_words else None)


def _pairs(
    file: TokenFile, context: int, special: SpecialTokens, config: TrainConfig, tokenizer: Tokenizer
) -> SentencePairs:
    return SentencePairs(file, context, special, _masked(file, context, special, config, tokenizer), Words(tokenizer))


def _continuations(
    file: TokenFile, context: int, special: SpecialTokens, config: TrainConfig, tokenizer: Tokenizer
) -> Continuations:
    return Continuations(file, context, special)


def _noisy(
    file: TokenFile, context: int, special: SpecialTokens, config: TrainConfig, tokenizer: Tokenizer
) -> NoisyTexts:
    rate = 0.3 if config.mask_rate is None else config.mask_rate
    return NoisyTexts(file, context, special, rate, Words(tokenizer), config.noise)


SIZE: dict[str, Any] = {"num_layers": 6, "num_heads": 6, "embedding_dim": 384, "context_length": 256}
# With BERT's learned positions and norms after the sums an encoder learns for thousands of steps no more than how often
# tokens occur: which neighbour stands where has to be found for each position anew. Rotary positions are relative. They
# bring an encoder-decoder, too, in 100 steps to where sinusoids do not in 300.
RELATIVE = {**SIZE, "positions": "rope", "norm": "pre"}

OBJECTIVES = {
    "clm": Objective(GPT, GPTConfig, 1, 0, (0,), False, SIZE, None),
    "mlm": Objective(Encoder, EncoderConfig, 1, None, (0,), True, RELATIVE, _masked),
    "mlm+nsp": Objective(Encoder, EncoderConfig, 1, None, (0,), True, RELATIVE, _pairs),
    "seq2seq": Objective(Seq2Seq, Seq2SeqConfig, 2, 1, (0, 1), True, RELATIVE, _continuations),
    "denoise": Objective(Seq2Seq, Seq2SeqConfig, 2, 1, (0, 1), True, RELATIVE, _noisy),
}


@torch.no_grad()
def pair_scores(model: Encoder, batches: Sequence[Batch]) -> dict[str, float]:
    """Of pairs of sentences: the loss of the masked tokens alone, and the share of pairs that are told rightly."""
    device = model.token_embedding.weight.device
    loss, counted, right, pairs = 0.0, 0, 0, 0
    for batch in batches:
        ids, targets, segments, lengths, classes = (each.to(device) for each in batch)
        count = int((targets != -100).sum())
        loss += float(model.loss(ids, targets, segments, lengths)) * count
        counted += count
        right += int((model.nsp_logits(model(ids, segments, lengths)).argmax(-1) == classes).sum())
        pairs += len(classes)
    return {"masked_token_loss": loss / max(1, counted), "next_sentence_accuracy": right / max(1, pairs)}
