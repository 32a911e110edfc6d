"""A single picture is a clip: it is filmed for as many frames as asked."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from pipeline import InputError, result_of
from pipeline.media.video import probe, read_video, size_of
from pipeline.render.analysis import analyse, hide
from pipeline.render.events import DoneEvent
from pipeline.render.request import RenderRequest
from pipeline.render.run import render
from pipeline.render.view import look, measure

HEIC = (  # 16 x 8, of one red
    "c-muNV30{GsVvAy%}izhg51nBLl8SRGck>Ufw3kxwIq=N0u(b+a*CjAhJwuG5(YG&l$nzcHpIn&fe{FSfN=qY1_CW0R?f`KO"
    "9S&jqM|@fDif5KQI>27V)7MamgK^f{K+gRDge@VG7FOPfpjTQnKL6ZNN56Bk=zG{KYxGxU|`^9P5|nVaA4$N{Qn=MfElEM8H"
    "D6^F*zgxB{iKG8PQ}GC^WK8d$n%Xvj>U`4m2<@@HBvgTatjP*<2V879Z>c+98~rpHq~VoKpc5<z-+4Dq#@GEG|feddvZeHIj"
    "1@K@Jmux}5_=|NsC00+40`(kDPPNWLJmA`_&MnS%qQMk2Ey7Z%3AU}J4$VrFdtvW;?65<y|Crop&gQZdfS;eG7V{r~f4{P#Z"
    "kPdK_}nb)%EEY~|`ax*tJ^iG^>0RWb8U>p"
)


@pytest.fixture
def request_(tmp_path, tiny_backbone_folder, monkeypatch) -> RenderRequest:
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))
    rows, columns = np.mgrid[:32, :48]
    picture = np.stack([5 * columns, 7 * rows, 128 + 0 * rows], -1).astype(np.uint8)
    picture[10:20, 18:30] = 255
    Image.fromarray(picture).save(tmp_path / "photo.png")
    z = np.full((1, 32, 48), 4.0, np.float32)
    z[:, 10:20, 18:30] = 2.0
    np.savez(tmp_path / "depth.npz", z=z)
    return RenderRequest.of(
        str(tmp_path / "photo.png"), backbone=str(tiny_backbone_folder), depth=str(tmp_path / "depth.npz"),
        depth_kind="metric", camera="truck", amount=20,
    )  # fmt: skip


def test_a_photograph_is_one_frame_upright_with_its_lens(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # it is to be turned clockwise
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 28
    picture = np.zeros((40, 64, 3), np.uint8)
    picture[:, :32] = 255
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif, quality=95)
    info, clip = probe(tmp_path / "a.jpg"), read_video(tmp_path / "a.jpg", max_side=32)
    assert (info.width, info.height, info.frames, info.still) == (40, 64, 1, True)
    assert info.fov == pytest.approx(66.5, abs=0.5)  # of the longer side of a picture 8 to 5
    assert clip.frames.shape == (1, 3, 32, 20) and clip.fps == 24
    assert clip.frames[0, :, 2].min() > 0.9 and clip.frames[0, :, -2].max() < 0.1
    with pytest.raises(InputError, match="past the end"):
        read_video(tmp_path / "a.jpg", start=1)


def test_pictures_of_phones_and_browsers(tmp_path):
    red = Image.new("RGB", (16, 8), (200, 40, 40))
    (tmp_path / "a.heic").write_bytes(zlib.decompress(base64.b85decode("".join(HEIC))))
    red.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[red.resize((8, 4))])  # with a map of light
    red.save(tmp_path / "a.webp")
    red.save(tmp_path / "moves.webp", save_all=True, append_images=[Image.new("RGB", (16, 8))])
    for name in ("a.heic", "a.jpg", "a.webp"):
        assert probe(tmp_path / name).still
        frames = read_video(tmp_path / name).frames
        assert frames.shape == (1, 3, 8, 16)
        assert (frames.mean((0, 2, 3)) - torch.tensor([200, 40, 40]) / 255).abs().max() < 0.05, name
    assert not probe(tmp_path / "moves.webp").still and len(read_video(tmp_path / "moves.webp").frames) == 2


@pytest.mark.parametrize("frames", [None, 1, 9])
def test_a_picture_lasts_as_long_as_asked(request_, frames):
    analysis = result_of(analyse(request_.changed(frames=frames)))
    count = frames or 5  # the length of the tiny model
    for part in (analysis.clip.frames, analysis.full.frames, analysis.depth.z, analysis.source.K):
        assert len(part) == count and (part == part[:1]).all()
    assert any("A picture is filmed for" in note for note in analysis.notes)


def test_a_picture_seen_by_the_camera_that_took_it_is_itself(request_):
    request = request_.changed(camera="still", amount=None)
    analysis = result_of(analyse(request))
    seen = measure(analysis, request, size=size_of(analysis.full.frames))
    assert seen.mask.all() and (seen.video - read_video(request.clip).frames).abs().max() < 1e-5


def test_a_mask_of_a_picture_holds_for_all_frames(request_, tmp_path):
    mask = np.zeros((32, 48), np.uint8)
    mask[10:20, 18:30] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    request = request_.changed(mask=str(tmp_path / "mask.png"), grow=0.0)
    analysis = result_of(hide(result_of(analyse(request)), request))
    assert analysis.hidden is not None
    assert (analysis.hidden == torch.from_numpy(mask > 0)).all()


def test_a_picture_is_rendered(request_, tmp_path):
    view = result_of(look(result_of(analyse(request_)), request_))
    assert not view.searched  # no other frame saw more
    *_, last = render(request_, tmp_path / "out")
    assert isinstance(last, DoneEvent), last
    assert probe(last.result.video).frames == 5
    frames = last.result.report.frames
    assert (frames.first, frames.last, frames.count, frames.in_clip) == (0, 0, 5, 1)
