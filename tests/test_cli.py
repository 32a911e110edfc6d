import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from synthetic import write_clip, write_depth

from pipeline.__main__ import main
from pipeline.cli.progress import Progress
from pipeline.media.video import probe
from pipeline.render.request import RenderRequest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_backbone_folder) -> list[str]:
    folder = tmp_path_factory.mktemp("clip")
    clip, depth = write_clip(folder / "clip.mp4"), write_depth(folder / "depth.npz")
    return [str(clip), "--backbone", str(tiny_backbone_folder), "--depth", str(depth)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))


def refused(arguments: list[str], capsys) -> str:
    try:
        code = main(arguments)
    except SystemExit as left:
        code = left.code
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1 and error.startswith("error: "), error
    return error


def test_recapture_end_to_end(inputs, tmp_path, capsys):
    output, report, kept = tmp_path / "new" / "out.mp4", tmp_path / "reports" / "report.json", tmp_path / "kept"
    more = ["--camera", "orbit-up", "--amount", "12", "--frames", "6", "--start", "2", "--size", "32x48"]
    more += ["--prompt", "a red ball", "--negative-prompt", "blue", "--seed", "7", "--steps", "2"]
    more += ["--guidance-scale", "2", "--latent-mask", "binary", "--solver", "dds_cg", "--gamma", "0.2"]
    files = ["--output", str(output), "--report", str(report), "--keep", str(kept)]
    assert main(["recapture", *inputs, *more, *files]) == 0
    info = probe(output)
    assert info.frames == 6 and info.has_audio and info.height > 32
    assert [path.name for path in output.parent.iterdir()] == ["out.mp4"]

    written = json.loads(report.read_text())
    asked = written["request"]
    assert (asked["camera"], asked["amount"], asked["size"], asked["seed"]) == ("orbit-up", 12, [32, 48], 7)
    assert (asked["latent_mask"], asked["solver"], asked["gamma"]) == ("binary", "dds_cg", 0.2)
    assert written["steps"] == 2 and written["sizes"]["working"] == [32, 48]
    assert written["measurement"]["raw"].keys() == written["measurement"]["composited"].keys() == {"psnr", "ssim"}
    assert sorted(path.name for path in kept.iterdir()) == ["depth.npz", "measurement.npz", "raw.npz"]
    with np.load(kept / "raw.npz") as raw, np.load(kept / "measurement.npz") as measurement:
        assert raw["video"].shape == measurement["video"].shape == (6, 32, 48, 3)
        assert measurement["mask"].shape == (6, 32, 48) and measurement["mask"][0].all()
    said = capsys.readouterr()
    assert "Sampling" in said.out and f"Wrote {output}" in said.out
    assert "error" not in said.err


def test_no_composite(inputs, tmp_path):
    output = tmp_path / "out.mp4"
    assert main(["recapture", *inputs, "--no-composite", "--size", "32x48", "--output", str(output)]) == 0
    assert (probe(output).height, probe(output).width) == (32, 48)


def test_warp_stops_at_the_measurement(inputs, tmp_path, capsys):
    output, kept = tmp_path / "warp.mp4", tmp_path / "kept"
    assert main(["warp", *inputs, "--amount", "15", "--output", str(output), "--keep", str(kept)]) == 0
    assert probe(output).frames == 5 and probe(output).has_audio
    assert sorted(path.name for path in kept.iterdir()) == ["depth.npz", "measurement.npz"]
    said = capsys.readouterr().out
    assert "Sampling" not in said and "% of the picture is unknown" in said


def test_a_camera_path_from_a_file(inputs, tmp_path, capsys):
    path, output = tmp_path / "path.json", tmp_path / "warp.mp4"
    assert main(["camera", "--camera", "spiral", "--amount", "30", "--output", str(path)]) == 0
    assert main(["warp", *inputs, "--camera", str(path), "--speed", "constant", "--output", str(output)]) == 0
    assert probe(output).frames == 5
    for format, name in (("nerfstudio", "transforms.json"), ("npz", "p.npz"), ("recammaster", "c.json")):
        arguments = ["camera", "--camera", str(path), "--format", format, "--frames", "9"]
        assert main([*arguments, "--output", str(tmp_path / name)]) == 0
        assert main(["warp", *inputs, "--camera", str(tmp_path / name), "--output", str(output)]) == 0
    assert "ends in .npz" in refused(["camera", "--format", "npz", "--output", str(tmp_path / "p.json")], capsys)
    mixed = ["warp", *inputs, "--camera", str(path), "--amount", "3", "--output", str(output)]
    assert "--amount is for a named camera move" in refused(mixed, capsys)
    assert "nowhere.txt" in refused(["camera", "--camera", "nowhere.txt", "--output", str(path)], capsys)


def test_time_stands_still_along_a_named_move(inputs, tmp_path):
    report = tmp_path / "report.json"
    more = ["--camera", "truck", "--amount", "10", "--frozen", "0.5", "--report", str(report)]
    assert main(["recapture", *inputs, *more, "--output", str(tmp_path / "out.mp4")]) == 0
    move = json.loads(report.read_text())["request"]["move"]
    assert move["timing"] == [[0.0, 0.5]] and move["keyframes"][-1]["eye"] == pytest.approx([0.1, 0, 0])


@pytest.mark.parametrize(("timing", "heard"), [([], True), (["--frozen", "0.5"], False), (["--time", "slow"], True)])
def test_warp_and_recapture_agree(inputs, tmp_path, timing, heard):
    """The same measurement and depth are kept, and the sound where time does not stand still."""
    kept = {}
    for command in ("warp", "recapture"):
        output, folder = tmp_path / f"{command}.mp4", tmp_path / command
        more = ["--camera", "truck", "--amount", "10", *timing, "--output", str(output), "--keep", str(folder)]
        assert main([command, *inputs, *more]) == 0
        assert probe(output).has_audio == heard
        with np.load(folder / "depth.npz") as depth, np.load(folder / "measurement.npz") as measurement:
            kept[command] = depth["z"], measurement["video"], measurement["mask"]
    assert all(np.array_equal(a, b) for a, b in zip(kept["warp"], kept["recapture"], strict=True))


def test_a_request_file(inputs, tmp_path, capsys, monkeypatch):
    clip, _, backbone, _, depth = inputs
    for name, source in (("clip.mp4", clip), ("depth.npz", depth)):
        (tmp_path / name).symlink_to(source)
    request = RenderRequest.of("clip.mp4", backbone=backbone, depth="depth.npz", steps=1)
    (tmp_path / "request.json").write_text(request.to_json())
    # paths in the file are found beside it
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["render", "../request.json", "--output", "out.mp4"]) == 0
    assert probe("out.mp4").frames == 5
    (tmp_path / "request.json").write_text('{"version": 1, "clip": "clip.mp4", "zoom": 2}')
    capsys.readouterr()
    assert "zoom" in refused(["render", "../request.json", "--output", "out.mp4"], capsys)
    assert "nowhere.json" in refused(["render", "nowhere.json", "--output", "out.mp4"], capsys)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--camera", "sideways"], "orbit-left"),
        (["--amount", "1000"], "amount"),
        (["--amount", "far"], "--amount"),
        (["--size", "64"], "height x width"),
        (["--size", "20x48"], "multiples of 16"),
        (["--steps", "0"], "steps"),
        (["--start", "99"], "12 frames"),
        (["--backbone", "no-such-model"], "no-such-model"),
        (["--depth", "nowhere.npz"], "nowhere.npz"),
        (["--latent-mask", "reference"], "training-free"),
        (["--unheard-of"], "--unheard-of"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(inputs, tmp_path, capsys, more, message):
    output = tmp_path / "out.mp4"
    assert message in refused(["recapture", *inputs, "--output", str(output), *more], capsys)
    assert not output.exists()


def test_places_that_cannot_be_written_are_named_before_any_work(inputs, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["recapture", *inputs, "--output"]
    assert "Cannot write" in refused([*arguments, str(tmp_path / "file" / "out.mp4")], capsys)
    good = str(tmp_path / "out.mp4")
    assert "Cannot write" in refused([*arguments, good, "--keep", str(tmp_path / "file" / "kept")], capsys)
    assert "Cannot write" in refused([*arguments, good, "--report", str(tmp_path / "file" / "report.json")], capsys)
    assert ".mp4" in refused([*arguments, str(tmp_path / "out.avi")], capsys)
    (tmp_path / "folder.mp4").mkdir()
    assert "is a folder" in refused([*arguments, str(tmp_path / "folder.mp4")], capsys)
    assert "clip itself" in refused([*arguments, inputs[0]], capsys)


def test_as_a_program(tmp_path):
    command = [sys.executable, "-m", "pipeline", "recapture", "nowhere.mp4", "--output", str(tmp_path / "out.mp4")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "nowhere.mp4" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_benchmark_prints_ratios(inputs, tmp_path, capsys, monkeypatch):
    for name, smaller in {"FRAMES": 9, "HEIGHT": 96, "WIDTH": 160}.items():
        monkeypatch.setattr(f"pipeline.evaluation.benchmark.{name}", smaller)
    depth = write_depth(tmp_path / "depth.npz", 9, 30, 52)
    assert main(["benchmark", "--backbone", inputs[2], "--depth", str(depth), "--size", "32x48"]) == 0
    said = capsys.readouterr().out
    assert "with guidance" in said and "9x96x160" in said and "decode" in said
    assert "all but the model" in said and "a forward splat" in said and "first preview after" in said


@pytest.mark.parametrize("command", [[], ["recapture"], ["warp"], ["render"], ["benchmark"], ["evaluate"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0 and "usage: python -m pipeline" in capsys.readouterr().out


def test_a_terminal_gets_a_bar_and_a_file_gets_lines(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def show() -> None:
        with Progress() as progress:
            progress.show("Warping", 0.1)
            progress.show("Sampling", 0.5, " 1/2, about 3 s left")
            progress.show("Sampling", 0.6, " 2/2, about 1 s left")

    show()
    assert capsys.readouterr().out == "Warping\nSampling\n"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    show()
    assert "Sampling 1/2, about 3 s left:  50%" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def run_cli(*arguments, **options):
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, **options)


def test_no_name_and_no_terminal_brings_a_traceback(tmp_path):
    long = run_cli("recapture", "x" * 300 + ".mp4", "--output", tmp_path / "o.mp4")
    assert long.returncode == 2 and "Traceback" not in long.stderr and len(long.stderr.splitlines()) == 1
    ascii_only = run_cli("models", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert ascii_only.returncode == 0 and "Traceback" not in ascii_only.stderr
    closed = subprocess.Popen([sys.executable, "-m", "pipeline", "models"], cwd=ROOT, stdout=-1, stderr=-1)
    closed.stdout.close()
    assert b"Traceback" not in closed.stderr.read()
    closed.wait()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing_half_written(inputs, tmp_path, number, code):
    command = [sys.executable, "-m", "pipeline", "recapture", *inputs, "--steps", "500"]
    with subprocess.Popen([*command, "--output", str(tmp_path / "o.mp4")], cwd=ROOT, stdout=-1, stderr=-1) as process:
        until = time.monotonic() + 60
        while not list(tmp_path.glob(".recapture-*")) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code and b"Traceback" not in said
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith((".", "o"))]


def test_ctrl_c_while_it_loads(tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "pipeline", "models"], cwd=ROOT, stdout=-1, stderr=-1)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert said.count(b"Traceback") == 0


def test_a_report_that_cannot_be_written_is_refused_first(inputs, tmp_path, capsys):
    (tmp_path / "report.json").mkdir()
    more = ["--output", str(tmp_path / "o.mp4"), "--report", str(tmp_path / "report.json")]
    assert "is a folder" in refused(["recapture", *inputs, *more], capsys)


def test_what_is_kept_is_whole_or_not_there(tmp_path, monkeypatch):
    from pipeline.media.files import save_arrays

    save_arrays(tmp_path / "a.npz", z=np.ones(3))

    def full(file, **arrays):
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError):
        save_arrays(tmp_path / "a.npz", z=np.zeros(3))
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    assert np.load(tmp_path / "a.npz")["z"].sum() == 3
