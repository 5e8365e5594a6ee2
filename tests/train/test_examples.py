"""What the objectives make of text: the ratios of the papers, pairs from two documents, noise that loses nothing."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pygpt.text import CharTokenizer, Document, TokenFile, prepare
from pygpt.text.rows import IGNORED, SpecialTokens
from pygpt.train.examples import (
    Continuations,
    Draws,
    ExampleLoader,
    MaskedTokens,
    NoisyTexts,
    SentencePairs,
    Words,
    fixed_batches,
)

ALPHABET = "abcdefghijklmnopqrstuvwxyz \n"
TOKENIZER = CharTokenizer(ALPHABET)
SPECIAL = SpecialTokens.above(TOKENIZER.vocab_size)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    """Nine documents, each of words of one letter's own, in lines."""
    folder = tmp_path_factory.mktemp("tokens")
    texts = ["".join(f"{c * (1 + (i * 7 + j) % 5)}{' ' if j % 4 else chr(10)}" for j in range(400)) for i, c in
             enumerate("abcdefghi")]  # fmt: skip
    prepare([Document(c, text) for c, text in zip("abcdefghi", texts, strict=True)], TOKENIZER, folder, 0)
    return TokenFile(folder)


def masked(file: TokenFile, **options) -> MaskedTokens:
    return MaskedTokens(file, 64, SPECIAL, **options)


def test_special_tokens_lie_above_the_texts():
    assert tuple(SPECIAL) == tuple(range(TOKENIZER.vocab_size, TOKENIZER.vocab_size + 4))


def test_random_numbers_are_of_their_distribution_and_their_key():
    draws = Draws(3, 1, 4)
    numbers = draws.uniform(20_000)
    assert numbers.min() >= 0 and numbers.max() < 1 and abs(numbers.mean() - 0.5) < 0.01
    assert np.bincount(draws.below(5, 20_000)).tolist() == pytest.approx([4000] * 5, rel=0.1)
    assert sorted(draws.order(50).tolist()) == list(range(50))
    spans = [draws.poisson(3.0) for _ in range(5000)]
    assert np.mean(spans) == pytest.approx(3, abs=0.1) and np.var(spans) == pytest.approx(3, abs=0.3)
    assert Draws(3, 1, 4).uniform(5).tolist() == Draws(3, 1, 4).uniform(5).tolist()
    assert Draws(3, 1, 4).uniform(5).tolist() != Draws(3, 1, 5).uniform(5).tolist()
    assert Draws(-1).uniform(1)[0] == pytest.approx(0.592210864289833, abs=1e-15), (
        "the stream must be the same in every version"
    )


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_hidden_tokens_have_the_papers_ratios(file, rate):
    """Of 64 tokens exactly the share is chosen; 80 % become masks, 10 % random tokens, 10 % stay: within 4 sigma."""
    examples, kinds = masked(file, rate=rate), Counter()
    for index in range(len(examples)):
        for epoch in range(4):
            ids, targets = examples.example(index, Draws(0, epoch, index))
            chosen = targets != IGNORED
            tokens = file.tokens[index * 64 : index * 64 + 64].astype(np.int64)
            assert chosen.sum() == round(64 * rate)
            assert (targets[chosen] == tokens[chosen]).all() and (ids[~chosen] == tokens[~chosen]).all()
            kinds["mask"] += int((ids[chosen] == SPECIAL.mask).sum())
            kinds["same"] += int((ids[chosen] == tokens[chosen]).sum())
            kinds["all"] += int(chosen.sum())
    assert ids.max() < SPECIAL.mask + 1
    total, random_is_same = kinds["all"], 0.1 / SPECIAL.mask
    for kind, share in (("mask", 0.8), ("same", 0.1 + random_is_same)):
        assert abs(kinds[kind] - total * share) < 4 * (total * share * (1 - share)) ** 0.5, kind


def test_whole_words_are_hidden_whole(file):
    words = Words(TOKENIZER)
    examples = masked(file, words=words)
    shares = []
    for index in range(len(examples)):
        tokens = file.tokens[index * 64 : index * 64 + 64].astype(np.int64)
        chosen = examples.example(index, Draws(5, 0, index))[1] != IGNORED
        for word in np.split(chosen, words.starts(tokens)[1:]):
            assert word.all() or not word.any()
        shares.append(chosen.mean())
    assert 0.1 < np.mean(shares) <= 0.16
    alone = MaskedTokens(file, 2, SPECIAL, words=words)
    assert all((alone.example(i, Draws(i))[1] != IGNORED).any() for i in range(20)), "at least one word"


def test_words_and_lines():
    text = "ab  cd\ne f"
    tokens = np.array(TOKENIZER.encode(text))
    assert Words(TOKENIZER).line_ends(tokens).tolist() == [7]
    pieces = [TOKENIZER.decode(piece.tolist()) for piece in np.split(tokens, Words(TOKENIZER).starts(tokens)[1:])]
    assert "".join(pieces) == text and [piece.strip() for piece in pieces if piece.strip()] == ["ab", "cd", "e", "f"]


def test_pairs_are_half_true_and_never_of_one_document(file):
    words = Words(TOKENIZER)
    pairs = SentencePairs(file, 64, SPECIAL, masked(file, rate=1e-9), words)
    classes, text = [], file.tokens.astype(np.int64)
    for index in range(len(pairs)):
        ids, targets, segments, label = pairs.example(index, Draws(7, 0, index))
        ids = np.where(targets != IGNORED, targets, ids)
        ends = np.flatnonzero(ids == SPECIAL.end)
        assert ids[0] == SPECIAL.start and len(ends) == 2 and ends[1] == len(ids) - 1 <= 63
        assert (segments == np.repeat([0, 1], [ends[0] + 1, ends[1] - ends[0]])).all()
        a, b = ids[1 : ends[0]], ids[ends[0] + 1 : ends[1]]
        letters = [set(TOKENIZER.decode(part.tolist())) & set("abcdefghi") for part in (a, b)]
        following = any((text[i : i + len(a) + len(b)] == np.concatenate([a, b])).all()
                        for i in range(len(text) - len(a) - len(b) + 1))  # fmt: skip
        assert following == (label[0] == 0)
        assert letters[0].isdisjoint(letters[1]) == (label[0] == 1)
        classes.append(int(label[0]))
    count = len(classes)
    assert abs(sum(classes) - count / 2) < 4 * (count / 4) ** 0.5
    ids, targets, segments, lengths, labels = pairs.batch([pairs.example(i, Draws(i)) for i in range(5)])
    assert ids.shape == targets.shape == segments.shape == (5, 64) and lengths.shape == labels.shape == (5,)
    assert (ids[torch.arange(64) >= lengths.unsqueeze(1)] == SPECIAL.pad).all()


def test_pairs_need_two_documents(tmp_path):
    prepare([Document("", "one document\n" * 20)], TOKENIZER, tmp_path, 0)
    file = TokenFile(tmp_path)
    with pytest.raises(ValueError, match=r"has 1 documents of 4 tokens or more.*--separator"):
        SentencePairs(file, 16, SPECIAL, MaskedTokens(file, 16, SPECIAL), Words(TOKENIZER))
    with pytest.raises(ValueError, match="context must be at least 8"):
        SentencePairs(file, 7, SPECIAL, MaskedTokens(file, 7, SPECIAL), Words(TOKENIZER))


def test_continuations_are_the_text_and_shifted_by_one(file):
    examples = Continuations(file, 64, SPECIAL)
    made = [examples.example(index, Draws(1, 0, index)) for index in range(len(examples))]
    assert (np.concatenate([np.concatenate(pair) for pair in made]) == file.tokens[: 64 * len(made)]).all()
    sizes = [len(source) for source, _ in made]
    assert min(sizes) >= 16 and max(sizes) < 48 and len(set(sizes)) > 10
    source, ids, targets, source_lengths, lengths = examples.batch(made[:6])
    for row in range(6):
        assert (source[row, : source_lengths[row]].numpy() == made[row][0]).all()
        assert ids[row, 0] == SPECIAL.start and targets[row, lengths[row] - 1] == SPECIAL.end
        assert torch.equal(ids[row, 1 : lengths[row]], targets[row, : lengths[row] - 1])
        assert (targets[row, lengths[row] :] == IGNORED).all()


def noisy(file: TokenFile, *noise: str, rate: float = 0.3) -> NoisyTexts:
    return NoisyTexts(file, 64, SPECIAL, rate, Words(TOKENIZER), noise)


def test_noise_by_kind(file):
    spans = []
    for index in range(len(noisy(file))):
        plain, target = noisy(file).example(index, Draws(2, 0, index))
        assert (plain == target).all() and len(target) == 63
        source, _ = noisy(file, "permutation").example(index, Draws(2, 0, index))
        lines = [sorted(TOKENIZER.decode(part.tolist()).splitlines()) for part in (source, target)]
        assert sorted(source.tolist()) == sorted(target.tolist())
        assert len(lines[0]) <= len(lines[1]) + 1
        source, _ = noisy(file, "masking").example(index, Draws(2, 0, index))
        assert (source == SPECIAL.mask).sum() == round(0.3 * 63) and len(source) == 63
        source, _ = noisy(file, "infilling").example(index, Draws(2, 0, index))
        kept = source[source != SPECIAL.mask]
        assert len(kept) == 63 - round(0.3 * 63) and len(source) <= 64
        place = iter(target.tolist())
        assert all(token in place for token in kept.tolist()), "what stays is in its order"
        spans.append((63 - len(kept)) / int((source == SPECIAL.mask).sum()))
    assert 2.3 < np.mean(spans) < 3.3  # Poisson(3), the last stretch cut short


def loader(file: TokenFile, seed: int = 3) -> ExampleLoader:
    return ExampleLoader(masked(file), 4, seed, {"content_hash": file.content_hash, "objective": "mlm"})


def test_batches_go_on_from_any_position(file):
    first = loader(file)
    batches = [next(first) for _ in range(2 * len(masked(file)) // 4)]
    for position in (1, len(batches) // 2 + 1):
        again = loader(file)
        again.load_state_dict({**first.state_dict(), "position": 4 * position})
        for mine, right in zip(next(again), batches[position], strict=True):
            assert torch.equal(mine, right)
    assert not torch.equal(batches[0][0], next(loader(file, 4))[0])
    with pytest.raises(ValueError, match="state was saved with objective 'clm', but this loader has 'mlm'"):
        loader(file).load_state_dict({**first.state_dict(), "objective": "clm"})


def test_each_epoch_hides_other_tokens_and_evaluations_the_same(file):
    epochs = loader(file)
    count = len(masked(file)) // 4
    seen = [torch.cat([next(epochs)[1] for _ in range(count)]) for _ in range(2)]
    assert not torch.equal(seen[0].sort(0)[0], seen[1].sort(0)[0])
    a, b = (fixed_batches(masked(file), 4, 2, 0) for _ in range(2))
    assert len(a) == 2 and all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


def test_damage_is_named(tmp_path: Path):
    prepare([Document("", "abc\n" * 50)], TOKENIZER, tmp_path, 0)
    path = tmp_path / "train.bin"
    path.write_bytes(b"\xff\xff" + path.read_bytes()[2:])
    with pytest.raises(ValueError, match=r"train\.bin is damaged: it holds token 65535"):
        MaskedTokens(TokenFile(tmp_path), 16, SPECIAL).example(0, Draws(0))
    with pytest.raises(ValueError, match="has 201 tokens, but a context of 999"):
        MaskedTokens(TokenFile(tmp_path), 999, SPECIAL)
