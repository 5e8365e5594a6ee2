from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pygpt import GPT, GPTConfig
from tests.models.plain import plain_logits
from tests.models.test_config import small
from tests.support import assert_accurate, assert_near, assert_same_bits, random_generator, threads


def lively(config: GPTConfig, dtype: torch.dtype = torch.float32) -> GPT:
    """A model in eval mode whose parameters are all far from their initial values, so that each one matters."""
    torch.manual_seed(random_generator().initial_seed())
    model = GPT(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3).add_(1.0 if parameter.dim() == 1 else 0.0)
    return model


def tokens(model: GPT, *shape: int) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, shape)


def loss_and_gradients(model: GPT, *arguments, **options) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = model.loss(*arguments, **options)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


@settings(max_examples=12)
@given(
    changes=st.fixed_dictionaries(
        {
            "activation": st.sampled_from(["gelu_tanh", "gelu", "relu"]),
            "positions": st.sampled_from(["learned", "sinusoidal", "none"]),
            "norm": st.sampled_from(["pre", "post"]),
            "bias": st.booleans(),
            "tie_head": st.booleans(),
            "num_kv_heads": st.sampled_from([1, 2, 4]),
            "head_dim": st.sampled_from([None, 5]),
            "hidden_dim": st.sampled_from([None, 31]),
            "attention_windows": st.sampled_from([(None,), (None, 3), (2,)]),
        }
    )
)
def test_is_the_same_model_in_plain_pytorch(changes):
    model = lively(small(**changes, layer_norm_eps=1e-3))
    ids, targets = tokens(model, 2, 11), tokens(model, 2, 11)
    targets[0, 3:6] = -100
    ours = loss_and_gradients(model, ids, targets)
    ours["logits"] = model(ids).detach()
    parameters = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    logits = plain_logits(model, parameters, ids)
    loss = F.cross_entropy(logits.transpose(1, 2), targets)
    loss.backward()
    exact = {"loss": loss.detach(), "logits": logits.detach(), **{name: p.grad for name, p in parameters.items()}}
    for name, right in exact.items():
        assert_near(ours[name], right, f"{name} of {changes}")


def test_training_follows_plain_pytorch():
    """The same initial weights, batches and optimiser: losses within 1e-3 over 40 steps."""
    torch.manual_seed(random_generator().initial_seed())
    model = GPT(small(vocab_size=50))
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    optimizers = [torch.optim.AdamW(list(p), lr=3e-3) for p in (model.parameters(), parameters.values())]
    ours, theirs = [], []
    for _ in range(40):
        steps = torch.randint(1, 4, (8, 17))
        sequence = (torch.randint(50, (8, 1)) + steps.cumsum(1)) % 50
        ids, targets = sequence[:, :-1], sequence[:, 1:]
        losses = [
            model.loss(ids, targets),
            F.cross_entropy(plain_logits(model, parameters, ids).transpose(1, 2), targets),
        ]
        for loss, optimizer, record in zip(losses, optimizers, (ours, theirs), strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            record.append(float(loss.detach()))
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-3
    assert ours[-1] < ours[0] - 1


def test_a_padded_row_is_the_row_alone():
    model = lively(small(attention_windows=(None, 3)))
    ids, lengths = tokens(model, 4, 9), torch.tensor([9, 4, 0, 1])
    for row, length in enumerate(lengths.tolist()):
        ids[row, length:] = -7  # padding may be anything
    logits = model(ids, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        if length:
            alone = model(ids[row : row + 1, :length])
            assert_same_bits(logits[row : row + 1, :length], alone, f"row {row}")
        assert (logits[row, length:] == 0).all()


def test_padding_has_no_loss_and_no_gradient():
    model = lively(small())
    ids, targets, lengths = tokens(model, 3, 6) % 5, tokens(model, 3, 6), torch.tensor([6, 2, 0])
    padded = torch.arange(6) >= lengths.unsqueeze(1)
    ids[padded] = 20  # appears nowhere else, and the head is tied: its row may get a gradient from the head alone
    got = loss_and_gradients(model, ids, targets, lengths=lengths)
    ids[padded] = 21
    same = loss_and_gradients(model, ids, targets, lengths=lengths)
    for name in got:
        assert_same_bits(got[name], same[name], name)
    targets[padded] = -100
    logits = model(ids, lengths=lengths)
    torch.testing.assert_close(got["loss"], F.cross_entropy(logits.transpose(1, 2), targets))
    assert float(model.loss(ids, targets, lengths=torch.zeros(3, dtype=torch.int64)).detach()) == 0


def test_targets_of_any_number_may_be_left_out():
    model = lively(small())
    ids, targets = tokens(model, 2, 9), tokens(model, 2, 9)
    others = targets.clone()
    others[0, 3:6], targets[0, 3:6] = 7, -100
    others[targets == 7] = -100  # 7 is what is left out, so that what was 7 has to stay, or go, on both sides
    targets[targets == 7] = -100
    others[others == -100] = 7
    expected = loss_and_gradients(model, ids, targets)
    for name, value in loss_and_gradients(model, ids, others, ignore_index=7).items():
        assert_same_bits(value, expected[name], name)


def test_packed_documents_are_the_documents_alone():
    model = lively(small(attention_windows=(None, 3)))
    cuts = [0, 5, 5, 6, 20]
    ids = tokens(model, 1, cuts[-1])  # more than the context, but no document is
    packed = model(ids, cu_seqlens=torch.tensor(cuts))
    for begin, end in itertools.pairwise(cuts):
        if begin < end:
            assert_same_bits(packed[:, begin:end], model(ids[:, begin:end]), f"document {begin} to {end}")
    targets = tokens(model, 1, 20)
    loss = model.loss(ids, targets, cu_seqlens=torch.tensor(cuts))
    torch.testing.assert_close(loss, F.cross_entropy(packed[0], targets[0]))


def test_bits_do_not_depend_on_batch_or_threads():
    model = lively(small())
    ids, targets = tokens(model, 5, 9), tokens(model, 5, 9)
    logits, results = model(ids), loss_and_gradients(model, ids, targets)
    for row in range(5):
        assert_same_bits(logits[row : row + 1], model(ids[row : row + 1]), f"row {row} alone")
    assert_same_bits(logits[:, :4], model(ids[:, :4]), "the beginning alone")
    for count in (1, 3):
        with threads(count):
            for name, value in loss_and_gradients(model, ids, targets).items():
                assert_same_bits(value, results[name], f"{name} on {count} threads")


@pytest.mark.parametrize("dtype, expected", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_logits_are_never_rounded(dtype, expected):
    model = lively(small(tie_head=False), dtype)
    ids = tokens(model, 2, 5)
    logits = model(ids)
    assert logits.dtype == expected
    assert model.loss(ids, ids).dtype == expected
    assert not torch.equal(logits, logits.bfloat16().to(expected))


def test_autocast():
    """As near to float64 as the same model in plain PyTorch under autocast."""
    model = lively(small())
    ids, targets = tokens(model, 2, 9), tokens(model, 2, 9)

    def plain(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        parameters = {name: p.detach().to(dtype).requires_grad_() for name, p in model.named_parameters()}
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            logits = plain_logits(model, parameters, ids)
        F.cross_entropy(logits.to(dtype).transpose(1, 2), targets).backward()
        return logits.detach(), torch.cat([p.grad.flatten() for p in parameters.values()])

    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids).detach()
        loss = model.loss(ids, targets)
    loss.backward()
    assert logits.dtype == loss.dtype == torch.float32
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    ours = logits, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    for mine, theirs, exact in zip(ours, plain(torch.float32), plain(torch.float64), strict=True):
        distance, allowed = (float((x.double() - exact).norm()) for x in (mine, theirs))
        assert 0 < distance <= 2 * allowed


def test_a_step_under_autocast_copies_no_weight():
    """They are rounded as kernels read them: there is no cast copy to keep, and none to make anew for every batch."""
    model = lively(small())
    ids, targets = tokens(model, 2, 9), tokens(model, 2, 9)
    with torch.profiler.profile(record_shapes=True) as profile:
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model.loss(ids, targets)
            loss.backward()
    weights = {tuple(p.shape) for p in model.parameters() if p.dim() == 2}
    weights |= {shape[::-1] for shape in weights}
    copies = [e for e in profile.events() if e.name in ("aten::copy_", "aten::_to_copy", "aten::clone")]
    assert copies, "activations are cast"
    assert not [e for e in copies if any(tuple(shape) in weights for shape in e.input_shapes)]


@pytest.mark.parametrize("autocast", [False, True])
def test_recomputed_blocks_give_the_same_bits_with_dropout(autocast):
    model = lively(small(dropout=0.2)).train()
    ids, targets = tokens(model, 3, 9), tokens(model, 3, 9)

    def run(recompute):
        model.checkpoint_blocks = recompute
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return loss_and_gradients(model, ids, targets)

    kept, recomputed = run(False), run(True)
    for name, value in kept.items():
        assert_same_bits(value, recomputed[name], name)


@pytest.mark.parametrize("site", ["embedding_dropout", "attention_dropout", "residual_dropout"])
def test_dropout_acts_at_its_site_in_training_only(site):
    model = lively(small(**{site: 0.5}))
    plain = GPT(small())
    plain.load_state_dict(model.state_dict())
    ids = tokens(model, 2, 9)
    assert_same_bits(model(ids), plain(ids), "eval")
    model.train()
    torch.manual_seed(1)
    first = model(ids)
    assert not torch.equal(first, plain(ids)) and not torch.equal(first, model(ids))
    torch.manual_seed(1)
    assert_same_bits(first, model(ids), "the same seed")


@pytest.mark.parametrize("options", [{}, {"lengths": [9, 4]}])
def test_compiled_gives_the_same_bits(options):
    model = lively(small(attention_windows=(None, 3)))
    options = {name: torch.tensor(value) for name, value in options.items()}
    ids, targets = tokens(model, 2, 9), tokens(model, 2, 9)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(ids, **options), model(ids, **options), "logits")
    compiled_loss = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    eager = loss_and_gradients(model, ids, targets, **options)
    model.zero_grad()
    compiled_loss(ids, targets, **options).backward()
    for name, parameter in model.named_parameters():
        assert_same_bits(parameter.grad, eager[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_inductor_is_as_accurate_as_eager(autocast):
    """The whole model, its loss and its gradients in one graph of generated code around pygpt's ops."""
    model = lively(small())
    ids, targets = tokens(model, 3, 11), tokens(model, 3, 11)
    targets[0, 3:6] = -100

    def results(model, loss_of):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(ids, targets)
        loss.backward()
        return torch.cat([loss.detach().view(1), *(p.grad.flatten() for p in model.parameters())])

    exact = copy.deepcopy(model).double()
    eager = results(model, model.loss)
    compiled = results(model, torch.compile(model.loss, fullgraph=True))
    assert_accurate(compiled, results(exact, exact.loss), eager, "loss and gradients")
    with torch.no_grad():
        logits = torch.compile(model, fullgraph=True)(ids)
    assert_near(logits, exact(ids).detach(), "logits")


def test_initial_weights_are_gpt2s():
    torch.manual_seed(random_generator().initial_seed())
    model = GPT(small(num_layers=8, embedding_dim=64, init_std=0.1))
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if name.endswith("bias"):
            assert (value == 0).all(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        else:
            residual = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
            assert value.std() == pytest.approx(0.1 / 4 if residual else 0.1, rel=0.15), name
            assert abs(value.mean()) < 0.02, name


def test_positions_follow_the_device_and_dtype():
    model = GPT(small(positions="sinusoidal")).bfloat16()
    assert model.position_table.dtype == torch.bfloat16
    assert "position_table" not in model.state_dict()
    assert copy.deepcopy(model)(tokens(model, 1, 3)).isfinite().all()


@pytest.mark.parametrize("positions", ["sinusoidal", "rope"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float64, marks=pytest.mark.float64)])
def test_a_model_that_was_moved_has_the_bits_of_one_that_was_made_there(positions, dtype):
    model = lively(small(positions=positions))
    ids = tokens(model, 2, 16)
    before = model(ids)
    there = GPT(model.config, dtype=dtype).eval()
    there.load_state_dict({name: value.to(dtype) for name, value in model.state_dict().items()})
    moved = copy.deepcopy(model).to(dtype)
    assert_same_bits(moved(ids), there(ids), "moved")
    with torch.no_grad():
        back = moved.float()
        for own, original in zip(back.parameters(), model.parameters(), strict=True):
            own.copy_(original)
    assert_same_bits(back(ids), before, "there and back")


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (([[1, 2]],), TypeError, "ids must be a tensor"),
        ((torch.zeros(3, dtype=torch.int64),), ValueError, r"ids must have shape \(batch, time\), not \(3,\)"),
        ((torch.zeros(1, 3),), TypeError, "ids must be int64, not torch.float32"),
        ((torch.full((1, 3), 23),), ValueError, "23"),
        ((torch.full((1, 3), -1),), ValueError, "-1"),
        ((torch.zeros(1, 17, dtype=torch.int64),), ValueError, "context_length is 16, but ids has 17"),
        ((torch.zeros(2, 3, dtype=torch.int64), torch.tensor([1, 4])), ValueError, "lengths must be .* at most 3"),
        ((torch.zeros(2, 3, dtype=torch.int64), torch.tensor([1])), ValueError, r"lengths must be int64 of shape \(2,"),
        ((torch.zeros(2, 3, dtype=torch.int64), [1, 2]), TypeError, "lengths must be a tensor, not a list"),
        ((torch.zeros(2, 3, dtype=torch.int64), None, torch.tensor([0, 3])), ValueError, "batch 1"),
        ((torch.zeros(1, 3, dtype=torch.int64), None, [0, 3]), TypeError, "cu_seqlens must be a tensor, not a list"),
        ((torch.zeros(1, 3, dtype=torch.int64), None, torch.tensor([0, 2])), ValueError, "cu_seqlens must go from 0"),
        ((torch.zeros(1, 3, dtype=torch.int64), None, torch.tensor([0, 2, 1, 3])), ValueError, "never back"),
        ((torch.zeros(1, 20, dtype=torch.int64), None, torch.tensor([0, 17, 20])), ValueError, "a document has 17"),
        ((torch.zeros(1, 3, dtype=torch.int64), torch.tensor([3]), torch.tensor([0, 3])), ValueError, "together"),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        GPT(small())(*arguments)


def test_bad_targets():
    model = GPT(small())
    ids = tokens(model, 2, 3)
    with pytest.raises(ValueError, match=r"targets must have the shape of ids, \(2, 3\), not \(2, 2\)"):
        model.loss(ids, ids[:, 1:])
    with pytest.raises(TypeError, match="targets must be a tensor, not a list"):
        model.loss(ids, ids.tolist())
    with pytest.raises(TypeError, match="ids must be a tensor, not a list"):
        model.loss(ids.tolist(), ids)
    with pytest.raises(TypeError, match=r"targets must be int64, not torch\.int32"):
        model.loss(ids, ids.int())
    with pytest.raises(ValueError, match="99"):
        model.loss(ids, torch.full((2, 3), 99))
    with pytest.raises(TypeError, match="config must be a GPTConfig"):
        GPT("gpt2")
    for dtype in (torch.int8, "float32"):
        with pytest.raises(TypeError, match=r"dtype must be a torch\.dtype of floating-point numbers, not"):
            GPT(small(), dtype=dtype)
