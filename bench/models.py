"""The whole-model rows of `compare.py`: GPT-2 small learns, reads and writes, beside `peers.PlainGPT`.

Letters: B batch, T time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bench import gpu
from bench.case import Call, Case, Work, largest_error
from bench.peers import PlainGPT
from pygpt import GPT, GPTConfig, ops, optim

SMALL, XL = GPTConfig.preset("gpt2"), GPTConfig.preset("gpt2-xl")
PROMPT, WRITTEN, LONG = 16, 32, 256  # tokens of the decode rows
LEARNERS = ("pygpt", "pygpt, whole logits", "eager", "compiled")


def cases(config: GPTConfig, batch: int, time: int) -> Iterator[Case]:
    """The rows of all whole-model work, with each dtype."""
    of_dtypes = [_cases(config, dtype, batch, time) for dtype in (torch.float32, torch.bfloat16)]
    for of_one_name in zip(*of_dtypes, strict=True):
        yield from of_one_name


def _cases(config: GPTConfig, dtype: torch.dtype, B: int, T: int) -> list[Case]:
    model = f"{config.num_parameters() / 1e6:.0f}M parameters"
    return [
        Case(
            op=None,
            name="train step",
            shape=f"{model}, ({B}, {T})",
            dtype=dtype,
            direction="forward + backward",
            work=_training_work(config, B, T),
            contenders=lambda compiled: _training(config, dtype, B, T, compiled),
            errors=lambda: _gradient_errors(config, dtype),
        ),
        Case(
            op=None,
            name="prefill",
            shape=f"{model}, ({B}, {T})",
            dtype=dtype,
            direction="forward",
            work=_prefill_work(config, B, T),
            contenders=lambda compiled: _prefill(config, dtype, B, T, compiled),
            errors=lambda: _logit_errors(config, dtype),
        ),
        Case(
            op=None,
            name="decode",
            shape=f"{model}, {B} × {WRITTEN} tokens",
            dtype=dtype,
            direction="forward",
            work=_decode_work(config, B),
            contenders=lambda compiled: _decode(config, dtype, B),
            errors=lambda: _logit_errors(config, dtype),
            recorded=False,
        ),
    ]


def decode_cases(config: GPTConfig) -> Iterator[Case]:
    """Writing one text in bfloat16 on a GPU: by the kernels for few rows, and with the bits of the forward pass.

    In a session, what a first text has made, a graph of the step among it, serves the next ones.
    """
    for name, exact, in_session, written in (
        ("decode", False, False, WRITTEN),
        ("decode, exact", True, False, WRITTEN),
        ("decode in a session", False, True, LONG),
        ("decode in a session, exact", True, True, LONG),
    ):
        yield Case(
            op=None,
            name=name,
            shape=f"{config.num_parameters() / 1e6:.0f}M parameters, 1 × {written} tokens",
            dtype=torch.bfloat16,
            direction="forward",
            work=_decode_work(config, 1, written),
            contenders=lambda compiled, how=(written, exact, in_session): _decode(config, torch.bfloat16, 1, *how),
            errors=lambda: _logit_errors(config, torch.bfloat16),
            recorded=False,
        )


def _models(config: GPTConfig, dtype: torch.dtype) -> tuple[GPT, PlainGPT, PlainGPT]:
    """Ours, theirs, and theirs in float64, with the same weights."""
    torch.manual_seed(1)
    ours = GPT(config, device=torch.get_default_device(), dtype=dtype)
    theirs, exact = PlainGPT(config, dtype), PlainGPT(config, torch.float64)
    for model in (theirs, exact):
        model.load_state_dict(ours.state_dict())
    return ours, theirs, exact


def _tokens(config: GPTConfig, batch: int, time: int) -> Tensor:
    drawn = torch.randint(config.vocab_size, (batch, time), generator=torch.Generator().manual_seed(1), device="cpu")
    return drawn.to(torch.get_default_device())


def _ids_and_targets(config: GPTConfig, batch: int, time: int) -> tuple[Tensor, Tensor]:
    tokens = _tokens(config, batch, time + 1)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def _autocast(dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    return (
        torch.autocast(torch.get_default_device().type, dtype) if dtype == torch.bfloat16 else contextlib.nullcontext()
    )


def training_step(who: str, config: GPTConfig, dtype: torch.dtype, B: int, T: int) -> tuple[nn.Module, Call]:
    """Loss, gradients and an AdamW step of one of `LEARNERS`; parameters in float32, bfloat16 by autocast."""
    ids, targets = _ids_and_targets(config, B, T)
    model, loss = _learner(who, config)
    options: dict[str, bool] = {"capturable": gpu.in_use()}
    optimizer = (
        optim.AdamW(model.parameters(), **options)
        if isinstance(model, GPT)
        else torch.optim.AdamW(model.parameters(), fused=True, **options)
    )

    def call() -> None:
        with _autocast(dtype):
            value = loss(ids, targets)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, call


def _learner(who: str, config: GPTConfig) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    """A model, and how it computes its loss."""
    torch.manual_seed(1)
    ours = GPT(config, device=torch.get_default_device())
    if who == "pygpt":
        return ours, ours.loss
    if who == "pygpt, whole logits":
        return ours, lambda ids, targets: ops.cross_entropy(ours(ids), targets)
    theirs = PlainGPT(config)
    theirs.load_state_dict(ours.state_dict())
    return theirs, torch.compile(theirs.loss) if who == "compiled" else theirs.loss


def _training(config: GPTConfig, dtype: torch.dtype, B: int, T: int, compiled: bool) -> dict[str, Call]:
    names = ("pygpt", "eager", *(["compiled"] if compiled else []))
    return {who: training_step(who, config, dtype, B, T)[1] for who in names}


def _prefill(config: GPTConfig, dtype: torch.dtype, B: int, T: int, compiled: bool) -> dict[str, Call]:
    """Logits of the token after a prompt."""
    ids = _tokens(config, B, T)

    def read(model: GPT | PlainGPT, hidden: Callable[[Tensor], Tensor]) -> Call:
        return torch.no_grad()(lambda: model.logits(hidden(ids)[:, -1]))

    ours, theirs, _ = _models(config, dtype)
    out = {"pygpt": read(ours, ours.hidden), "eager": read(theirs, theirs.hidden)}
    if compiled:
        out["compiled"] = read(theirs, torch.compile(theirs.hidden))
    return out


def _decode(
    config: GPTConfig,
    dtype: torch.dtype,
    B: int,
    written: int = WRITTEN,
    exact: bool | None = None,
    in_session: bool = False,
) -> dict[str, Call]:
    """Greedy tokens after a short prompt, with a key/value cache. Not compiled: its shapes change with each token."""
    ids = _tokens(config, B, PROMPT)
    ours, theirs, _ = _models(config, dtype)
    session = ours.session() if in_session else contextlib.nullcontext()
    session.__enter__()
    return {
        # Who holds the call holds the session.
        "pygpt": lambda session=session: ours.generate(ids, max_new_tokens=written, temperature=0.0, exact=exact),
        "eager": lambda: theirs.generate(ids, written),
    }


def _gradient_errors(config: GPTConfig, dtype: torch.dtype) -> tuple[float, float]:
    """Of the gradients of all parameters."""
    models = _models(config, torch.float32)
    ids, targets = _ids_and_targets(config, 1, 64)
    gradients = []
    for model, context in zip(models, (_autocast(dtype), _autocast(dtype), contextlib.nullcontext()), strict=True):
        with context:
            loss = model.loss(ids, targets)
        loss.backward()
        gradients.append([parameter.grad for _, parameter in sorted(model.named_parameters())])
    ours, theirs, exact = gradients
    return largest_error(ours, exact), largest_error(theirs, exact)


@torch.no_grad()
def _logit_errors(config: GPTConfig, dtype: torch.dtype) -> tuple[float, float]:
    ids = _tokens(config, 1, 64)
    ours, theirs, exact = ([model(ids)] for model in _models(config, dtype))
    return largest_error(ours, exact), largest_error(theirs, exact)


def _block_weights(config: GPTConfig) -> int:
    """Those of matrix products."""
    return config.num_layers * (4 * config.embedding_dim**2 + 2 * config.embedding_dim * config.hidden_dim)


def _head_weights(config: GPTConfig) -> int:
    return config.vocab_size * config.embedding_dim


def _forward_operations(config: GPTConfig, B: int, T: int, head_rows: int) -> float:
    scores = 4 * B * config.num_layers * config.embedding_dim * T * (T + 1) / 2
    return 2 * B * T * _block_weights(config) + 2 * head_rows * _head_weights(config) + scores


def _training_work(config: GPTConfig, B: int, T: int) -> Work:
    """Three forward passes' worth; weights are read twice, their gradients written, and AdamW moves seven numbers."""
    return Work(3 * _forward_operations(config, B, T, B * T), 0, 10 * 4 * config.num_parameters())


def _prefill_work(config: GPTConfig, B: int, T: int) -> Work:
    return Work(_forward_operations(config, B, T, B), _block_weights(config) + _head_weights(config))


def _decode_work(config: GPTConfig, B: int, written: int = WRITTEN) -> Work:
    """Each token reads every weight, and the keys and values before it."""
    weights = _block_weights(config) + _head_weights(config)
    cache = 2 * B * config.num_layers * config.embedding_dim * sum(range(PROMPT, PROMPT + written))
    return Work(written * 2 * B * weights + 2 * cache, written * weights + cache)
