"""What a configuration says of an objective's examples is what they are; what is told of pairs is counted."""

import numpy as np
import pytest
import torch

from pygpt import Encoder, EncoderConfig
from pygpt.text import TokenFile
from pygpt.text.rows import IGNORED
from pygpt.train.config import TrainConfig
from pygpt.train.examples import Draws, Words
from pygpt.train.objectives import OBJECTIVES, pair_scores
from tests.train.test_examples import SPECIAL, TOKENIZER, file  # noqa: F401


def examples(file: TokenFile, objective: str, **settings):  # noqa: F811
    make = OBJECTIVES[objective].make
    assert make is not None
    return make(file, 64, SPECIAL, TrainConfig(objective=objective, **settings), TOKENIZER)


@pytest.mark.parametrize("objective", ["mlm", "mlm+nsp"])
def test_hidden_tokens_are_the_share_and_the_words_that_are_asked_for(file, objective):  # noqa: F811
    words = Words(TOKENIZER)
    for settings, least, most in (({}, 0.05, 0.25), ({"mask_rate": 0.5}, 0.4, 0.6)):
        for whole in (False, True):
            made = examples(file, objective, whole_words=whole, **settings)
            shares, cut = [], 0
            for index in range(len(made)):
                ids, targets = made.example(index, Draws(5, index))[:2]
                chosen = targets != IGNORED
                tokens = np.where(chosen, targets, ids)
                own = tokens < SPECIAL.mask  # of the text
                shares.append(chosen[own].mean())
                if objective == "mlm":
                    cut += sum(part.any() and not part.all() for part in np.split(chosen, words.starts(tokens)[1:]))
            assert least < np.mean(shares) < most
            if objective == "mlm":
                assert (cut == 0) == whole


def test_noise_is_that_which_is_asked_for(file):  # noqa: F811
    def source(**settings):
        return examples(file, "denoise", **settings).example(0, Draws(2))[0]

    target = examples(file, "denoise").example(0, Draws(2))[1]
    assert (source(noise=("masking",)) == SPECIAL.mask).sum() == round(0.3 * 63)
    assert (source(noise=("masking",), mask_rate=0.6) == SPECIAL.mask).sum() == round(0.6 * 63)
    permuted = source(noise=("permutation",))
    assert sorted(permuted.tolist()) == sorted(target.tolist()) and (permuted != target).any()
    both = source()  # permutation and infilling
    assert (both == SPECIAL.mask).any() and len(both) < len(target) + 1


@torch.no_grad()
def test_pairs_are_scored_by_their_own_loss_and_share(file):  # noqa: F811
    made = examples(file, "mlm+nsp")
    batches = [made.batch([made.example(i, Draws(i)) for i in rows]) for rows in ((0, 1, 2), (3, 4))]
    torch.manual_seed(1)
    shape = {"num_layers": 1, "num_heads": 2, "embedding_dim": 16, "context_length": 64}
    model = Encoder(EncoderConfig(vocab_size=TOKENIZER.vocab_size + 4, **shape)).eval()
    right, losses = [], []
    for ids, targets, segments, lengths, classes in batches:
        hidden = model(ids, segments, lengths)
        right += (model.nsp_logits(hidden).argmax(-1) == classes).tolist()
        every = torch.nn.functional.cross_entropy(model.mlm_logits(hidden).transpose(1, 2), targets, reduction="none")
        losses.append(every[targets != IGNORED])
    scores = pair_scores(model, batches)
    assert scores["next_sentence_accuracy"] == pytest.approx(np.mean(right))
    assert scores["masked_token_loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
