"""What is known of a backbone before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline import InputError
from pipeline.models import hub, table
from pipeline.prior.settings import read_json, read_settings
from pipeline.prior.soft import CONFIG

RECAMMASTER, TI2V = "recammaster-1.3b", "wan2.2-ti2v-5b"  # of the table


@dataclass(frozen=True)
class Said:
    """What the table, or a folder on this machine, says of a backbone.

    soft: it has soft parts. encoder: the folder of the scene encoder that they were trained for, None for none.
    inpaints: it is shown what is known, by inpainting channels or by a time for each token.
    width, layers: of its transformer; None where no configuration says them.
    mask_encoder: the folder of its mask encoder, None for none.
    """

    soft: bool
    encoder: str | None
    inpaints: bool
    width: int | None
    layers: int | None
    mask_encoder: str | None


def said_of(ref: str) -> Said | None:
    """What the table, or the folder of a backbone on this machine, says of it; None for what neither knows."""
    spec = table.find(ref)
    if spec is not None and not spec.local:
        given = dict(spec.configs.get("transformer", {}))
        return _said(given, spec.name == RECAMMASTER, None, None, spec.name == TI2V)
    try:
        root = Path(hub.resolve(ref))
    except InputError:  # said when it is loaded
        return None
    if not root.is_dir():
        return None
    settings, given = read_settings(root), read_json(root / "transformer" / CONFIG)
    folder = settings.soft
    encoder = None if folder is None else read_json(Path(folder) / CONFIG).get("encoder")
    encoder = None if encoder is None else str(Path(str(folder)) / encoder)
    return _said(given, folder is not None, encoder, settings.mask_encoder, settings.token_times)


def _said(given: dict, soft: bool, encoder: str | None, mask_encoder: str | None, token_times: bool) -> Said:
    """given: the configuration of the transformer, {} where there is none."""
    heads, each = given.get("num_attention_heads"), given.get("attention_head_dim")
    inpaints = not given or token_times or given.get("in_channels") != given.get("out_channels")
    width = heads * each if heads and each else None
    return Said(soft, encoder, inpaints, width, given.get("num_layers"), mask_encoder)
