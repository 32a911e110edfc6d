"""The evaluations of the papers on a folder of clips: its layouts, its jobs, and every task from end to end."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from synthetic import frames, write_clip

from pipeline import InputError
from pipeline.__main__ import main
from pipeline.camera.geometry import PRESETS
from pipeline.evaluation import folders
from pipeline.evaluation.folders import evaluate, exchanged, read_prompts, sources_of
from pipeline.render.events import DoneEvent
from pipeline.render.request import RenderRequest
from pipeline.render.run import render

COUNT, SIZE = 6, (51, 75)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))


def object_mask() -> np.ndarray:
    mask = np.zeros((COUNT, *SIZE), bool)
    mask[:, 10:28, 16:40] = True
    return mask


@pytest.fixture
def flat(tmp_path):
    """Two videos, one with its mask beside."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for name in ("one", "two"):
        write_clip(folder / f"{name}.mp4", COUNT, *SIZE)
    np.savez(folder / "two.npz", mask=object_mask())
    (folder / "notes.txt").write_text("no clip")
    return folder


@pytest.fixture
def davis(tmp_path):
    """The layout of DAVIS 2017: a clip of two objects, as labels of a palette, and one without annotations."""
    root = tmp_path / "davis"
    for clip in ("bear", "unmasked"):
        place = root / "JPEGImages" / "480p" / clip
        place.mkdir(parents=True)
        for number, picture in enumerate(frames(COUNT, *SIZE)):
            Image.fromarray(picture).save(place / f"{number:05d}.jpg", quality=95)
    place = root / "Annotations" / "480p" / "bear"
    place.mkdir(parents=True)
    for number, mask in enumerate(object_mask()):
        labels = mask.astype(np.uint8)
        labels[40:48, 50:70] = 2
        picture = Image.fromarray(labels, mode="P")
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        picture.save(place / f"{number:05d}.png")
    return root


def names_of(folder) -> dict[str, str | None]:
    return {source.name: source.mask and source.mask.name for source in sources_of(folder)}


def test_layouts(flat, davis, tmp_path):
    assert names_of(flat) == {"one": None, "two": "two.npz"}
    assert names_of(flat / "two.mp4") == {"two": "two.npz"}
    assert names_of(davis) == {"bear": "bear", "unmasked": None}
    assert names_of(davis / "JPEGImages" / "480p") == {"bear": None, "unmasked": None}
    assert names_of(davis / "JPEGImages" / "480p" / "bear") == {"bear": None}

    each = tmp_path / "each"
    for name in ("a", "b"):
        (each / name).mkdir(parents=True)
        (each / name / "video.mp4").write_bytes((flat / "one.mp4").read_bytes())
    np.savez(each / "b" / "mask.npz", mask=object_mask())
    np.savez(each / "a" / "disparity.npz", disparity=object_mask())  # no mask
    assert names_of(each) == {"a": None, "b": "mask.npz"}

    (tmp_path / "empty").mkdir()
    for folder, words in ((tmp_path / "nowhere", "There is no folder"), (tmp_path / "empty", "holds no clips")):
        with pytest.raises(InputError, match=f"{words}.*JPEGImages/480p"):
            sources_of(folder)


def test_each_clip_gets_one_of_the_six_paths_in_turn(flat):
    (flat / "two.mp4").rename(flat / "00.mp4")
    for number in range(1, 7):
        (flat / f"{number:02d}.mp4").write_bytes((flat / "one.mp4").read_bytes())
    ask = lambda **given: folders.jobs_of(
        "camera", sources_of(flat), folders.RenderRequest.of(clip="-"), {}, ["dds"], **given
    )
    jobs = list(ask())
    assert [job.request.camera for job in jobs] == [*PRESETS, *tuple(PRESETS)[:2]]
    assert all(job.source.mask is None for job in jobs)
    # the same where only some are asked for, and along others if told so
    (job,) = ask(prompts={"03": ["a red ball"]})
    assert job.request.camera == tuple(PRESETS)[3] and job.request.guidance.prompt == "a red ball"
    chosen = [(job.source.name, job.key["path"]) for job in ask(prompts={"03": [""]}, cameras=["pan", "tilt"])]
    assert chosen == [("03", "pan"), ("03", "tilt")]
    with pytest.raises(InputError, match="name clips that are not there: missing"):
        list(ask(prompts={"missing": [""]}))


def test_objects_of_davis_are_replaced_one_by_one(davis):
    ask = lambda prompts: folders.jobs_of(
        "replace", sources_of(davis), folders.RenderRequest.of(clip="-"), {}, ["dds", "none"], prompts=prompts
    )
    jobs = list(ask({"bear": ["a red ball", "a cube"], "bear/2": ["a green ball"]}))
    found = [(job.label, job.request.guidance.prompt, job.request.guidance.solver) for job in jobs]
    assert found[:4] == [
        (1, "a red ball", "dds"),
        (1, "a red ball", "none"),
        (1, "a cube", "dds"),
        (1, "a cube", "none"),
    ]
    assert found[4:] == [(2, "a green ball", "dds"), (2, "a green ball", "none")]
    assert len({json.dumps(job.key) for job in jobs}) == 6
    assert all(job.request.camera == "still" for job in jobs)
    place = sources_of(davis)[0].mask
    assert place is not None
    assert (folders.masks_of(place, 1) == object_mask()).all() and folders.masks_of(place, 2).sum() == COUNT * 160
    assert folders.masks_of(place, None).sum() == folders.masks_of(place, 1).sum() + folders.masks_of(place, 2).sum()
    with pytest.raises(InputError, match="no mask of the clip unmasked"):
        list(ask({"unmasked": ["a red ball"]}))


def test_prompts(tmp_path, monkeypatch):
    path = tmp_path / "prompts.json"
    path.write_text('{"a": ["x", "y"], "b": "z"}')
    assert read_prompts(path) == {"a": ["x", "y"], "b": ["z"]}
    for wrong in ("", "[]", "{}", '{"a": 3}', '{"a": []}', '{"a": [1]}'):
        path.write_text(wrong)
        with pytest.raises(InputError, match=r"prompts\.json"):
            read_prompts(path)
    assert exchanged("a man riding a bike in a forest")[:2] == [
        "a robot riding a bike in a forest",
        "a brown bear riding a bike in a forest",
    ]
    assert exchanged("two dogs on the grass")[0] == "a robot on the grass"
    assert exchanged("a bus")[0] == "a robot" and len(set(exchanged("a bus"))) == 5


def ask_of(tiny_backbone_folder, tmp_path, said):
    return dict(output=tmp_path / "rows.jsonl", steps=2, progress=said.append)


def test_every_task_goes_on_where_its_file_ends(flat, davis, tiny_backbone_folder, tmp_path, monkeypatch):
    said: list[str] = []
    ask = ask_of(tiny_backbone_folder, tmp_path, said)
    output, done = ask["output"], []
    once = folders.row_of
    monkeypatch.setattr(folders, "row_of", lambda job: done.append(job) or once(job))
    run = lambda task, folder, **more: evaluate(task, sources_of(folder), str(tiny_backbone_folder), **ask, **more)

    table = run("camera", flat)
    assert len(done) == 2 and "| two | orbit-right |" in table and "95 % confidence" in table
    lines = output.read_text().splitlines()
    for line in map(json.loads, lines):
        assert 0 < line["unknown"] < 1 and line["psnr_observed"] > 5 and -1 < line["ssim_observed"] <= 1
        assert line["seconds"] >= line["sampling"] > 0 and line["memory"] > 0.05
        assert line["psnr_vae"] > 5 and line["psnr_vae_warp"] > 5
    assert run("camera", flat) == table and len(done) == 2 and output.read_text().splitlines() == lines
    assert said[-1] == "2 of 2 rows are there already"

    # a run that was killed in the middle of a line
    output.write_text("\n".join(lines)[:-40])
    run("camera", flat)
    assert len(done) == 3 and [json.loads(line)["clip"] for line in output.read_text().splitlines()] == ["one", "two"]
    # another clip of the same name, and another method, are other rows
    write_clip(flat / "one.mp4", COUNT - 1, *SIZE)
    run("camera", flat, methods=["dds", "replacement,binary"])
    assert len(done) == 6

    table = run("replace", davis, prompts={"bear": ["a red ball", "a green cube"]})
    assert len(done) == 10 and "| 2 | a green cube |" in table and "| bear" not in table
    run("replace", flat, prompts={"two": ["a red ball"]})
    assert len(done) == 11
    assert 0 < json.loads(output.read_text().splitlines()[-1])["unknown"] < 0.5

    table = run("cycle", flat, cameras=["orbit-left", "dolly-in"])
    assert len(done) == 15 and "| dds | dolly-in | 2 |" in table
    rows = [json.loads(line) for line in output.read_text().splitlines()[-4:]]
    assert all(0 < row["lost"] < 1 and row["psnr_whole"] > 5 and row["seconds"] > row["sampling"] for row in rows)


@pytest.mark.parametrize("task", ["camera", "replace"])
def test_what_is_measured_is_what_is_rendered(task, flat, tiny_backbone_folder, tmp_path):
    """The same clip, method and settings in an evaluation and in a render: the same raw result."""
    ask = ask_of(tiny_backbone_folder, tmp_path, [])
    given = {"prompts": {"two": ["a red ball"]}, "methods": ["dds,other_frames=true"]}
    evaluate(task, sources_of(flat), str(tiny_backbone_folder), **given, **ask)
    row = json.loads(ask["output"].read_text())
    mask = {"mask": str(flat / "two.npz")} if task == "replace" else {}
    request = RenderRequest.of(str(flat / "two.mp4"), prompt="a red ball", backbone=str(tiny_backbone_folder), steps=2)
    request = request.changed(camera=row["path"], **mask)
    *_, done = render(request, tmp_path / "render")
    assert isinstance(done, DoneEvent), done
    report = done.result.report.to_dict()
    assert report["guidance_scale"] == (7.0 if task == "replace" else 3.0)
    assert row["unknown"] == pytest.approx(report["unknown"]) and report["unknown"] > 0
    assert row["psnr_observed"] == pytest.approx(report["measurement"]["raw"]["psnr"], abs=1e-4)


def test_a_cycle_along_no_path_is_the_vae_twice(flat, tiny_backbone_folder, tmp_path):
    """Where everything is observed and nothing is left to the model, what is lost is what the VAE loses."""
    ask = ask_of(tiny_backbone_folder, tmp_path, [])
    evaluate(
        "cycle", sources_of(flat)[:1], str(tiny_backbone_folder), cameras=["still"], methods=["dds,gamma=1e-7"], **ask
    )
    row = json.loads(ask["output"].read_text())
    assert row["unknown"] == row["lost"] == 0
    assert row["psnr_observed"] == pytest.approx(row["psnr_whole"]) and row["ssim_observed"] == pytest.approx(
        row["ssim_whole"]
    )
    assert row["psnr_observed"] == pytest.approx(row["psnr_vae"], abs=0.05)


def test_what_cannot_be_used_is_left_out_and_said(flat, tiny_backbone_folder, tmp_path):
    said: list[str] = []
    ask = ask_of(tiny_backbone_folder, tmp_path, said)
    (flat / "broken.mp4").write_bytes(b"no video" * 99)
    table = evaluate("camera", sources_of(flat), str(tiny_backbone_folder), **ask)
    assert "Left out: broken: broken.mp4" in table and len(ask["output"].read_text().splitlines()) == 2
    assert "left out" in said[0]
    with pytest.raises(InputError, match=r"No clip could be used\. broken"):
        evaluate("camera", sources_of(flat / "broken.mp4"), str(tiny_backbone_folder), **ask)
    with pytest.raises(InputError, match="camera must be one of"):
        evaluate("camera", sources_of(flat), str(tiny_backbone_folder), cameras=["sideways"], **ask)
    (flat / "two.npz").unlink()
    with pytest.raises(InputError, match="no masks of objects beside these clips"):
        evaluate("replace", sources_of(flat), str(tiny_backbone_folder), **ask)


def test_without_prompts_and_captioner_the_remedy_is_named(flat, tiny_backbone_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.models.hub.at_hand", lambda ref: None)
    with pytest.raises(InputError, match=r'--prompts prompts\.json, such as \{"two": \[.*not on this machine'):
        evaluate("replace", sources_of(flat), str(tiny_backbone_folder), **ask_of(tiny_backbone_folder, tmp_path, []))
    monkeypatch.setattr(
        "pipeline.models.caption.caption", lambda *_, **__: SimpleNamespace(words="a square moving right")
    )
    (source,) = [source for source in sources_of(flat) if source.mask]
    assert folders.made_prompts(source)[0] == "a robot moving right"


def test_on_the_command_line(flat, tiny_backbone_folder, tmp_path, capsys):
    more = ["--backbone", str(tiny_backbone_folder), "--steps", "1"]
    assert main(["evaluate", "camera", str(flat), *more, "--output", str(tmp_path / "new" / "rows.jsonl")]) == 0
    said = capsys.readouterr()
    assert "| one | orbit-left |" in said.out and "2/2 two, orbit-right: done" in said.err
    assert main(["evaluate", "--clips", str(flat / "one.mp4"), *more]) == 0
    table = capsys.readouterr().out
    assert all(f"\n| {path} |" in table for path in PRESETS)
    for wrong, words in (
        (["camera"], "Give a folder of clips"),
        (["camera", str(flat), "--clips", str(flat / "one.mp4")], "not both"),
        (["camera", str(tmp_path / "nowhere")], "There is no folder"),
        (["replace", str(flat), "--cameras", "pan"], "--cameras is for camera and cycle"),
        (["cycle", str(flat), "--figure", "figure.png"], "--figure is for unseen scenes"),
        (["--prompts", "prompts.json"], "--prompts is for clips"),
        (["replace", str(flat), "--prompts", str(tmp_path / "no.json")], "Cannot read the prompts"),
    ):
        assert main(["evaluate", *wrong, *more]) == 2
        assert words in capsys.readouterr().err


def test_ray_is_asked_for_in_plain_words(flat, tiny_backbone_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    ask = ask_of(tiny_backbone_folder, tmp_path, [])
    with pytest.raises(InputError, match=r"Ray is not installed\. This gets it: pip install ray"):
        evaluate("camera", sources_of(flat), str(tiny_backbone_folder), ray=True, **ask)


@pytest.fixture
def cluster():
    """One of Ray with a single worker, which takes long enough to start."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_same_rows_come_from_ray(flat, tiny_backbone_folder, tmp_path):
    (flat / "broken.mp4").write_bytes(b"no video" * 99)
    rows: list[dict[str, dict]] = []
    for ray in (False, True):
        output = tmp_path / f"{ray}.jsonl"
        ask = dict(output=output, steps=2, ray=ray, progress=lambda _: None)
        table = evaluate("camera", sources_of(flat), str(tiny_backbone_folder), **ask)
        assert "Left out: broken: broken.mp4" in table
        rows.append({row["clip"]: row for row in map(json.loads, output.read_text().splitlines())})
    here, there = rows
    assert here.keys() == there.keys() == {"one", "two"}
    for clip, row in here.items():
        for name, value in row.items():
            if name in ("seconds", "sampling", "memory"):
                assert there[clip][name] > 0
            elif isinstance(value, float) and math.isfinite(value):
                assert there[clip][name] == pytest.approx(value, abs=1e-3)
            else:
                assert there[clip][name] == value
