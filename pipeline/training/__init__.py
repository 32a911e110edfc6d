"""The procedural world and the trainings of the nano models on it."""

import copy
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def check_gradients(loss_of: Callable[[Any], Tensor], plain: Any, compiled: Any, parameters: Iterable[Tensor]) -> None:
    """Refuse a compiled network whose gradients are not those of the plain one.

    torch.compile can return wrong ones without a word: those of convolutions in bfloat16 on a CPU with torch 2.13, on
    CUDA see pytorch issue 190796. loss_of(network) is a loss of one batch. Raises SystemExit.
    """
    weights = list(parameters)
    right, found = (
        torch.autograd.grad(loss_of(network), weights, allow_unused=True, materialize_grads=True)
        for network in (plain, compiled)
    )
    cosine = lambda a, b: torch.cosine_similarity(a.float().flatten(), b.float().flatten(), dim=0).item()
    alike = [cosine(a, b) for a, b in zip(right, found, strict=True) if a.any()]
    likeness = sum(alike) / len(alike)
    if not likeness > 0.9:  # rounding in bfloat16 leaves 0.95 near an optimum
        raise SystemExit(
            f"Compiled, the network's gradients are wrong (a mean cosine of {likeness:.2f} with those that are right). "
            "Leave out --compile, or try another version of torch."
        )


class Muon(torch.optim.AdamW):
    """Muon (kellerjordan.github.io/posts/muon, 2024) for matrices and kernels of a network, AdamW for the rest.

    A step of Muon is the momentum with all its singular values made about equal, as large as a step of AdamW (arXiv
    2502.16982, equation 4). A kernel counts as a matrix with a row for each output; rates and decay are those of AdamW.

    outer: how the names begin of what is left to AdamW all the same, as the first and the last layer.
    """

    def __init__(self, model: torch.nn.Module, *, outer: tuple[str, ...], **settings: Any):
        inner = {name: p.ndim >= 2 and not name.startswith(outer) for name, p in model.named_parameters()}
        groups = [
            {"params": [p for name, p in model.named_parameters() if inner[name] == muon], "orthogonal": muon}
            for muon in (True, False)
        ]
        super().__init__(groups, **settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        assert closure is None
        for group in self.param_groups:
            for p in group["params"] if group["orthogonal"] else []:
                if p.grad is None:
                    continue
                if not self.state[p]:  # AdamW reads a step in each state that it loads
                    self.state[p] = {"step": torch.zeros(()), "momentum": torch.zeros_like(p)}
                momentum = self.state[p]["momentum"]
                momentum.lerp_(p.grad, 0.05)
                update = orthogonalised(p.grad.lerp(momentum, 0.95).flatten(1))  # as Nesterov
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.view_as(p), alpha=-0.2 * group["lr"] * max(update.shape) ** 0.5)
                p.grad = None  # AdamW leaves it alone
        return super().step()


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix with singular values of 0.7 to 1.2: five Newton-Schulz steps of Muon, in bfloat16.

    A CPU without AVX-512 multiplies in bfloat16 many times slower than in float32, which it takes instead.
    """
    slow = matrix.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() != "AVX512"
    x = matrix.float() if slow else matrix.bfloat16()
    x = x if len(matrix) <= matrix.shape[1] else x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x if len(matrix) <= matrix.shape[1] else x.T).to(matrix.dtype)


def average(mean: torch.nn.Module, model: torch.nn.Module, step: int, most: float) -> None:
    """Move the running mean of the weights towards the model's; quickly at first, later keeping the share `most`."""
    keep = min(most, (1 + step) / (20 + step))
    with torch.no_grad():
        for a, b in zip(mean.parameters(), model.parameters(), strict=True):
            a.lerp_(b, 1 - keep)


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write tensors and numbers with `torch.save`; a reader sees the old file or the new one, never a part."""
    partial = path.with_suffix(f".{os.getpid()}.part")
    torch.save(state, partial)
    partial.replace(path)


def save_half(net: Any, folder: Path) -> None:
    """A copy of a diffusers or transformers model in float16, in their layout.

    The folder that the training started from is left out of its config: nobody else's business.
    """
    copy.deepcopy(net).half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
