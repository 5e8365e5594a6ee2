"""AdamW in one pass over memory, with the interface and the state of `torch.optim.AdamW`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from pygpt.ops.adamw import adamw
from pygpt.ops.operation import contiguous

_MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW(torch.optim.Optimizer):
    """AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, 2019).

    The formula, parameter groups and ``state_dict`` of `torch.optim.AdamW`; each loads what the other saved. A step
    reads and writes every array once, and its bits do not depend on the number of threads. For parameters of 16 bits
    the moments are float32, and so is ``master``, a copy of the parameter that collects changes too small for it.

    Args:
        params: parameters, or dicts of parameters and options, as for any PyTorch optimiser.
        lr: learning rate; at least 0.
        betas: how much of the mean gradient and of the mean squared gradient a step keeps; each in [0, 1).
        eps: added to the root of the mean squared gradient; at least 0.
        weight_decay: at least 0.
        capturable: a step may be captured in a CUDA graph: steps are counted on the parameters' device, and ``lr`` may
            be a single float32 there, which a replay reads anew. Without it a capture is an error, since every replay
            would be the same step.

    Raises:
        ValueError: if an option is out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        capturable: bool = False,
    ) -> None:
        if isinstance(lr, Tensor) and not capturable:
            raise ValueError("lr must be a number, but is a tensor, which capturable=True allows")
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not isinstance(value, Tensor) and not value >= 0:
                raise ValueError(f"{name} must be at least 0, but is {value}")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), but is {betas}")
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "capturable": capturable}
        super().__init__(params, options)

    @overload
    def step(self, closure: None = None, *, grad_scale: float | Tensor | None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float], *, grad_scale: float | Tensor | None = None) -> float: ...

    @torch.no_grad()
    def step(
        self, closure: Callable[[], float] | None = None, *, grad_scale: float | Tensor | None = None
    ) -> float | None:
        """Take one step.

        Args:
            closure: computes the loss and the gradients anew.
            grad_scale: a factor of all gradients, such as a clipping coefficient; the gradients themselves stay as
                they are.

        Returns:
            What ``closure`` returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group, grad_scale)
        return loss

    def _step_group(self, group: dict[str, Any], grad_scale: float | Tensor | None) -> None:
        params = [param for param in group["params"] if param.grad is not None]
        if not params:
            return
        if any(param.grad.is_sparse for param in params):
            raise TypeError("AdamW takes dense gradients, but one is sparse")
        device, capturable = params[0].device, group["capturable"]
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing() and not capturable:
            raise RuntimeError("AdamW: a step that is captured in a CUDA graph needs capturable=True")
        states = [self._state_of(param, capturable) for param in params]
        steps = [state["step"] for state in states]
        counted = torch._foreach_add(steps, 1)
        lr = group["lr"]
        if capturable:  # fills, not copies from the host, which cannot be captured
            lr = lr if isinstance(lr, Tensor) else torch.full((), lr, dtype=torch.float32, device=device)
        if grad_scale is not None:
            if isinstance(grad_scale, Tensor):
                grad_scale = grad_scale.to(device, torch.float32)
            else:  # a fill too
                grad_scale = torch.full((), grad_scale, dtype=torch.float32, device=device)
        # The kernel walks through contiguous memory; what is not goes through a copy, and back if it was written.
        written = {name: [contiguous(state[name]) for state in states] for name in _MOMENTS}
        written["param"] = [contiguous(param) for param in params]
        adamw(
            written["param"],
            [contiguous(cast(Tensor, param.grad)) for param in params],
            written["exp_avg"],
            written["exp_avg_sq"],
            [state.get("master") for state in states],
            counted if capturable else [float(step) for step in counted],
            lr=lr if capturable else float(lr),
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            grad_scale=grad_scale,
        )
        torch._foreach_copy_(steps, counted)  # a step that is refused does not count
        for i, (param, state) in enumerate(zip(params, states, strict=True)):
            for name, original in (("param", param), *((name, state[name]) for name in _MOMENTS)):
                if written[name][i] is not original:
                    original.copy_(written[name][i])

    def _state_of(self, param: Tensor, capturable: bool) -> dict[str, Tensor]:
        state = self.state[param]
        dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device if capturable else "cpu")
            for name in _MOMENTS:
                state[name] = torch.zeros_like(param, dtype=dtype, memory_format=torch.contiguous_format)
        if param.dtype in (torch.bfloat16, torch.float16) and "master" not in state:
            state["master"] = param.detach().to(dtype, memory_format=torch.contiguous_format)
        return cast("dict[str, Tensor]", state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("capturable", False)  # of a state from before it was an option

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` of this class or of `torch.optim.AdamW` gave.

        Raises:
            ValueError: if the state is of another shape of model, or of AdamW with ``amsgrad`` or ``maximize``.
        """
        for group in state_dict["param_groups"]:
            for name in ("amsgrad", "maximize"):
                if group.get(name):
                    raise ValueError(f"{name} must be False (pygpt's AdamW has no such option), but the state has it")
        super().load_state_dict(state_dict)
        # torch gives the state the parameter's dtype; with 16 bits, moments and master would lose digits. The steps of
        # its fused optimiser are on the parameters' device, where reading each would wait for that.
        numbers = itertools.chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = ((param, group["capturable"]) for group in self.param_groups for param in group["params"])
        for number, (param, capturable) in zip(numbers, params, strict=True):
            if "step" in state_dict["state"].get(number, {}):
                step = torch.as_tensor(self.state[param]["step"])
                self.state[param]["step"] = step.to(param.device if capturable else "cpu", torch.float32)
            if param.dtype not in (torch.bfloat16, torch.float16):
                continue
            for name, value in state_dict["state"].get(number, {}).items():
                if name != "step":
                    self.state[param][name] = value.to(
                        param.device, torch.float32, memory_format=torch.contiguous_format
                    )
