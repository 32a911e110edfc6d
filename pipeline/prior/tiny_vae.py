"""TAEW 2.1, a tiny decoder of Wan 2.1's latents, for the previews while a render runs.

The architecture, and the names of its weights, are those published with TAEHV (github.com/madebyollin/taehv, MIT). As
its author advises for previews, the last doubling in space and both in time are left out: a picture a latent frame,
at half of the video's size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pipeline import InputError
from pipeline.models import hub, table

SPEC = table.MODELS["taew2.1"]  # the author's file, unchanged
SCALE = 4  # pixels of the preview a latent position
_WIDTHS = (256, 128, 64, 64)


def _conv(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class Block(nn.Module):
    """A residual block that also sees what it saw of the frame before: its only memory."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return F.relu(x + self.conv(torch.cat([x, before], 1)))


class _LastMoment(nn.Module):
    """Where the published decoder makes `moments` frames of one: the last of them."""

    def __init__(self, width: int, moments: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * moments, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight[-x.shape[1] :])


class TinyDecoder(nn.Module):
    """Normalised latents of Wan 2.1 to small pictures. Its weights are named as in the published file."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Identity(), _conv(16, _WIDTHS[0]), nn.ReLU()]
        for stage, moments in enumerate((1, 2, 2)):
            width, following = _WIDTHS[stage : stage + 2]
            doubled = nn.Identity() if stage == 2 else nn.Upsample(scale_factor=2)
            layers += [Block(width), Block(width), Block(width), doubled, _LastMoment(width, moments)]
            layers.append(_conv(width, following, bias=False))
        self.decoder = nn.Sequential(*layers, nn.ReLU(), _conv(_WIDTHS[3], 3))

    @torch.no_grad()
    def forward(self, z: Float[Tensor, "16 t h w"]) -> Float[Tensor, "t 3 4*h 4*w"]:
        """Pictures in [0, 1], one a latent frame; none depends on later latents."""
        weight: Any = self.decoder[1].weight
        memory: dict[int, Tensor] = {}
        pictures = []
        # one frame after the other: all at once would take as many times the memory
        for x in torch.tanh(z.to(weight) / 3).mul(3).unbind(1):
            x = x[None]
            for index, layer in enumerate(self.decoder):
                if isinstance(layer, Block):
                    before = memory.get(index, torch.zeros_like(x))
                    memory[index] = x
                    x = layer(x, before)
                else:
                    x = layer(x)
            pictures.append(x.float().clamp(0, 1))
        return torch.cat(pictures)


def tiny_decoder_file() -> Path | None:
    """Where the weights lie in the hub's cache of this machine; None if they are not there. Nothing is downloaded."""
    folder = hub.at_hand(SPEC.name)
    return None if folder is None else folder / SPEC.parts[0].files[0]


def load_tiny_decoder(path: str | Path, device: str | torch.device = "cpu") -> TinyDecoder:
    """The decoder with the weights of a safetensors file; those of the encoder beside them are not needed.

    float16 on CUDA, float32 on the CPU. Raises `InputError` for another file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model = TinyDecoder()
    try:
        weights = {name: value for name, value in load_file(path).items() if name.startswith("decoder.")}
        model.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{Path(path).name} holds no weights of TAEW 2.1 ({str(error).splitlines()[0]}). This gets them: "
            f"{hub.command_for(SPEC)}"
        ) from error
    dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    return model.eval().requires_grad_(False).to(device, dtype)
