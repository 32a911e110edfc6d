"""An object found by clicks, and followed, by SAM 2."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline import InputError
from pipeline.masks.shape import Click, Painted, checked
from pipeline.media.video import resize
from pipeline.models import hub, memory, table

SAM2 = "sam2-hiera-tiny"


def load_sam2(ref: str, device: str | torch.device = "cpu") -> Any:
    """The Sam2VideoModel of a folder or hub id. Weights are read from safetensors only, never from pickles.

    Nothing is downloaded: it has to be in the folder or in the hub's cache on this machine. Raises InputError.
    """
    from transformers import Sam2VideoModel

    try:
        model: Any = Sam2VideoModel.from_pretrained(ref, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"The segmentation model {ref!r} could not be loaded: {str(error).splitlines()[0]} Give a folder with a "
            f"Sam2VideoModel, download one first ({hub.command_for(table.MODELS[SAM2])}), or follow the "
            "object without a model."
        ) from error
    return model.eval().requires_grad_(False).to(device)


@torch.no_grad()
def track_with_sam2(
    frames: Float[Tensor, "T 3 H W"], painted: Painted, model: Any
) -> Generator[tuple[int, int], None, Bool[Tensor, "T H W"]]:
    """As `propagate`, by a model of `load_sam2`: painted masks are its prompts, the walk goes both ways from the first.

    The model keeps the clip at its own size on the CPU, 12 MB a frame at 1024x1024.
    """
    T, H, W = checked(frames, painted)
    size, session = _side(model), _session(frames, model)
    thing = session.obj_id_to_idx(1)
    times = sorted(painted)
    for t in times:
        prompt = resize(painted[t][None, None].float(), size) >= 0.5
        session.add_mask_inputs(thing, t, prompt.to(model.device, torch.float32))
        session.obj_with_new_inputs = [1]
        model(session, frame_idx=t)  # at once: the model takes up one new prompt of an object, and forgets the others

    mask = torch.zeros(T, H, W, dtype=torch.bool)
    done = 0
    for reverse in (False, True):
        for found in model.propagate_in_video_iterator(session, start_frame_idx=times[0], reverse=reverse):
            logits = found.pred_masks.float().cpu().view(1, 1, *found.pred_masks.shape[-2:])
            mask[found.frame_idx] = resize(logits, (H, W), mode="bilinear")[0, 0] > 0
            if not reverse or found.frame_idx != times[0]:  # which comes twice
                done += 1
                yield done, T
    for t in times:
        mask[t] = painted[t]
    return mask.to(frames.device)


@torch.no_grad()
def select_with_sam2(frame: Float[Tensor, "3 H W"], clicks: Sequence[Click], model: Any) -> Bool[Tensor, "H W"]:
    """The object that was clicked (True), in a frame in [0, 1], by a model of `load_sam2`."""
    height, width = frame.shape[-2:]
    (h, w), session = _side(model), _session(frame[None], model)
    thing = session.obj_id_to_idx(1)
    at = [[(c.column + 0.5) * w / width, (c.row + 0.5) * h / height] for c in clicks]
    labels = torch.tensor([[[int(c.positive) for c in clicks]]], dtype=torch.int32)
    session.add_point_inputs(thing, 0, {"point_coords": torch.tensor([[at]]), "point_labels": labels})
    session.obj_with_new_inputs = [1]
    logits = model(session, frame_idx=0).pred_masks.float().cpu()
    return resize(logits.view(1, 1, *logits.shape[-2:]), (height, width), mode="bilinear")[0, 0] > 0


def _side(model: Any) -> tuple[int, int]:
    side = model.config.image_size
    return (side, side) if isinstance(side, int) else (side[0], side[1])


def _session(frames: Float[Tensor, "T 3 H W"], model: Any) -> Any:
    # Not by its processor, which asks for torchvision: scaling and these means and deviations are all that it does.
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    mean, deviation = (torch.tensor(c).view(3, 1, 1) for c in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    video = torch.cat([resize(frame[None].detach().cpu().float(), _side(model)) for frame in frames])
    return Sam2VideoInferenceSession(
        video=video.sub_(mean).div_(deviation),
        video_height=frames.shape[2],
        video_width=frames.shape[3],
        inference_device=model.device,
        inference_state_device=model.device,
        video_storage_device="cpu",
        dtype=model.dtype,
    )


_load_sam2 = lru_cache(maxsize=1)(load_sam2)


def sam2_at_hand() -> Any:
    folder = hub.at_hand(SAM2)  # asked each time: it may be fetched while the app runs
    # where a GPU is lent, CUDA is there only in the processes that it is lent to, and this runs outside
    return folder and _load_sam2(str(folder), "cuda" if torch.cuda.is_available() and not memory.lent() else "cpu")
