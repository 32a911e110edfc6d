"""Re-capture of real clips, which have no truth: how well the observed is kept, next to what the VAE alone keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.camera import PRESETS
from pipeline.evaluation.metrics import psnr, ssim
from pipeline.render import Analysis, RenderRequest, analyse, get_backbone, measure, prepare, solve


def evaluate(
    clips: Sequence[str],
    backbone_ref: str,
    cameras: Sequence[str] = tuple(PRESETS),
    *,
    steps: int | None = None,
    progress: Callable[[str], None] = print,
) -> str:
    """A Markdown table, one line a clip and camera move of default amount, figures on the raw result.

    "VAE alone" is the PSNR of the clip encoded and decoded; "VAE of the warp" that of the warp with its holes filled,
    where it is observed: the limit of any result made of these latents. Raises `InputError` for clips that cannot be
    read.
    """
    backbone = get_backbone(backbone_ref)
    lines = [
        "| clip | camera | unknown | VAE alone, dB | VAE of the warp, dB | observed, dB | observed, SSIM |",
        "|---|---|---|---|---|---|---|",
    ]
    for clip in clips:
        base = RenderRequest(clip=clip, backbone=backbone_ref, steps=steps)
        (analysis,) = (event for event in analyse(base) if isinstance(event, Analysis))
        frames = analysis.clip.frames[: (len(analysis.clip.frames) - 1) // 4 * 4 + 1]
        alone = psnr(backbone.decode(backbone.encode(frames)).cpu(), frames)
        for camera in cameras:
            request = replace(base, camera=camera)
            measurement = measure(analysis, request)
            problem = prepare(backbone, measurement, analysis.clip.frames, request)
            z = problem.noise
            for step in solve(backbone, problem, request):
                z = step.z
            raw = backbone.decode(z)[: len(analysis.clip.frames)].cpu()
            kept, known = measurement.video, measurement.mask
            assert problem.y_full is not None
            limit = backbone.decode(problem.y_full)[: len(raw)].cpu()
            lines.append(
                f"| {clip} | {camera} | {1 - known.float().mean().item():.0%} | {alone:.2f} | "
                f"{psnr(limit, kept, known):.2f} | {psnr(raw, kept, known):.2f} | {ssim(raw, kept, known):.3f} |"
            )
            progress(f"{clip}, {camera} done")
    return "\n".join(lines)
