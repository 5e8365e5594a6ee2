"""Models of pygpt in lm-evaluation-harness (EleutherAI), whose package is the extra ``pygpt[harness]``.

::

    import lm_eval
    from pygpt.eval.harness import HarnessModel

    lm_eval.simple_evaluate(model=HarnessModel("runs/mine"), tasks=["lambada_openai"], num_fewshot=0)

or, after importing this module, by its name: ``model="pygpt", model_args="folder=runs/mine"``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from pygpt.eval.likelihood import continuations
from pygpt.generate import Generation
from pygpt.train.saved import load_model


@register_model("pygpt")
class HarnessModel(LM):  # type: ignore[misc]
    """A `pygpt.GPT` as lm-evaluation-harness asks models.

    Args:
        folder: of a run, or of a model and its tokenizer.
        batch_size: requests at a time; answers do not depend on it.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        FileNotFoundError, ValueError: as `pygpt.train.saved.load_model`.
    """

    def __init__(self, folder: str | Path, batch_size: int | str = 16, device: str = "cpu", **options: Any) -> None:
        super().__init__()
        if options.keys() - {"max_batch_size"}:
            raise ValueError(f"unknown option {min(options)!r}; there are folder, batch_size and device")
        self.model, self.tokenizer = load_model(folder)
        self.model.to(torch.device(device))
        self.batch_size = int(batch_size)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each request's (context, continuation): the log-probability, and whether it is the greedy text."""
        pairs = [self._pair(*request.args) for request in requests]
        return [(found.logprob, found.greedy) for found in continuations(self.model, pairs, self.batch_size)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of each request's (text,): the log-probability of all of it, in windows of the model's context."""
        limit = self.model.config.context_length
        totals = []
        for request in requests:
            tokens = self.tokenizer.encode(request.args[0])
            windows = get_rolling_token_windows(tokens, prefix_token=self._begin, max_seq_len=limit, context_len=1)
            pairs = [make_disjoint_window(window) for window in windows]
            found = continuations(self.model, pairs, self.batch_size) if tokens else []
            totals.append(math.fsum(each.logprob for each in found))
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Of each request's (context, options): what comes up to one of ``until``."""
        written = []
        with self.model.session():
            for request in requests:
                context, options = request.args
                until = options.get("until") or []
                until = [until] if isinstance(until, str) else list(until)
                limit = self.model.config.context_length
                most = min(int(options.get("max_gen_toks", 256)), limit - 1)
                prompt = (self.tokenizer.encode(context) or [self._begin])[most - limit :]
                sampled = bool(options.get("do_sample", False))
                end = self.tokenizer.end_of_document
                out = self.model.generate(
                    torch.tensor([prompt], device=self.model.token_embedding.weight.device),
                    max_new_tokens=most,
                    temperature=float(options.get("temperature", 1.0)) if sampled else 0.0,
                    stop=until,
                    stop_tokens=() if end is None else (end,),
                    tokenizer=self.tokenizer,
                    return_logprobs=True,
                )
                assert isinstance(out, Generation)
                new = out.tokens[0, len(prompt) : int(out.lengths[0])].tolist()
                if new and new[-1] == end:
                    new = new[:-1]
                text = self.tokenizer.decode(new)
                cut = min((place for stop in until if (place := text.find(stop)) >= 0), default=len(text))
                written.append(text[:cut])
        return written

    @property
    def _begin(self) -> int:
        """What a text without a context is read after."""
        end = self.tokenizer.end_of_document
        return self.tokenizer.encode("\n")[0] if end is None else end

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both; spaces at the context's end begin the continuation, as they do in training."""
        stripped = context.rstrip(" ")
        continuation = context[len(stripped) :] + continuation
        return self.tokenizer.encode(stripped) or [self._begin], self.tokenizer.encode(continuation)
