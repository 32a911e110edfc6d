"""The learned latent mask: from a mask over pixels to a mask over latents, in one pass of a small network.

InverseCrafter (arXiv 2512.05672), section 3: the encoder of the Wan VAE at base width 16 instead of 96 (about 1.5
million parameters), trained on the masks that a clean video gives. `training.mask_encoder` trains it.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLWan  # pyright: ignore[reportPrivateImportUsage]
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float
from torch import Tensor


class MaskEncoder(ModelMixin, ConfigMixin):
    """A causal encoder with as many outputs as the VAE has latent channels, and its grid.

    latent_channels: even. base_dim, dim_mult, num_res_blocks, temporal_downsample, patch_size: of `AutoencoderKLWan`,
    together with the strides of the VAE whose latents are masked. sees_video: the measurement is an input too.
    phi, tau: of the reference that was learned, see `latent_mask.PHI`.
    """

    wan: Any

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        base_dim: int = 16,
        dim_mult: list[int] = [1, 2, 4, 4],  # noqa: B006  of the library's own signature; it is only read
        num_res_blocks: int = 2,
        temporal_downsample: list[bool] = [False, True, True],  # noqa: B006
        patch_size: int | None = None,
        sees_video: bool = False,
        phi: str = "wiener",
        tau: float = 0.6,
    ) -> None:
        super().__init__()
        half = latent_channels // 2  # the encoder answers with a mean and a variance of each latent
        self.wan = AutoencoderKLWan(
            base_dim=base_dim,
            z_dim=half,
            dim_mult=list(dim_mult),
            num_res_blocks=num_res_blocks,
            attn_scales=[],
            temperal_downsample=list(temporal_downsample),
            latents_mean=[0.0] * half,
            latents_std=[1.0] * half,
            in_channels=(4 if sees_video else 1) * (patch_size or 1) ** 2,
            patch_size=patch_size,
        )
        del self.wan.decoder, self.wan.post_quant_conv

    def inputs(self, mask: Bool[Tensor, "B T 1 H W"], video: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B c T H W"]:
        """What the network sees, in [-1, 1]. mask: True = observed. video: the measurement, filled, in [0, 1]."""
        x = mask.to(self.dtype)
        x = torch.cat([x, video.to(self.dtype)], 2) if self.config["sees_video"] else x
        return 2 * x.transpose(1, 2) - 1

    @torch.no_grad()
    def forward(self, mask: Bool[Tensor, "T 1 H W"], video: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "C t h w"]:
        """h in [0, 1], 1 = known, float32; T = 4n + 1. The arguments are those of `inputs`, of one clip."""
        logits = self.wan.encode(self.inputs(mask[None], video[None])).latent_dist.parameters
        return logits[0].float().sigmoid()
