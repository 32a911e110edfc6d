"""A Space on ZeroGPU without a GPU: what `spaces` does there, for real, but for CUDA itself. Run by test_zerogpu.py.

Real are the patched PyTorch, the scheduling over HTTP, the forked workers, the pickling, the queues. In place of the
allocator of GPUs stands a server here; in the workers, tensors go from the emulated CUDA to the CPU.
Usage: python zerogpu_space.py BACKBONE_FOLDER CLIP_A CLIP_B FOLDER; prints JSON.
"""

from __future__ import annotations

import contextvars
import json
import os
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

BACKBONE, CLIP_A, CLIP_B, FOLDER = sys.argv[1:]
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]


class Allocator(BaseHTTPRequestHandler):
    """Lends as many GPUs as are asked for. The visitor called `poor` has no quota left."""

    calls: ClassVar[list[dict]] = []
    lent = 0
    lock = threading.Lock()

    def do_POST(self):
        asked = urlsplit(self.path)
        given = {name: values[0] for name, values in parse_qs(asked.query).items()}
        status, answer = 200, {}
        with self.lock:
            self.calls.append({"path": asked.path, **given})
            if asked.path == "/schedule" and given.get("token") == "poor":
                status, answer = 429, {"left": 3, "wait": 3600}
            elif asked.path == "/schedule":
                n = Allocator.lent
                Allocator.lent += 1
                answer = {"idle": False, "nvidiaIndex": n, "nvidiaUUID": f"GPU-{n}", "allowToken": f"allow-{n}"}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Allocator)
threading.Thread(target=server.serve_forever, daemon=True).start()
folder = Path(FOLDER)
(folder / "cgroup").write_text("0::/space\n")
os.environ |= {
    "SPACES_ZERO_GPU": "true",
    "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_port}",
    "ZEROGPU_PROC_SELF_CGROUP_PATH": str(folder / "cgroup"),
    "RECAPTURE_CACHE": str(folder / "cache"),
}

import torch  # noqa: E402

if torch.version.cuda is None:  # what `spaces` reads and replaces of a PyTorch that is made for CUDA
    torch.version.cuda = "12.8"
    torch._C._cuda_init = lambda: None
    torch.cuda._is_in_bad_fork = bool
import spaces  # noqa: E402, F401
import spaces.zero.torch as border  # noqa: E402
from gradio.context import LocalContext  # noqa: E402
from spaces.zero.torch import patching  # noqa: E402
from starlette.datastructures import Headers  # noqa: E402

from pipeline import InputError, result_of  # noqa: E402
from pipeline.render.analysis import analyse, find_depth  # noqa: E402
from pipeline.render.events import DoneEvent, StageEvent, StepEvent  # noqa: E402
from pipeline.render.loaded import get_backbone, loaded_depth_model, warm  # noqa: E402
from pipeline.render.request import RenderRequest  # noqa: E402
from pipeline.render.run import render  # noqa: E402
from pipeline.render.worker import fill  # noqa: E402
from ui import zerogpu  # noqa: E402
from ui.jobs import JobStore  # noqa: E402


def move(callback=None):
    """The weights that were moved to "cuda" before the launch, in a worker: to the CPU, which stands for the GPU."""
    assert not torch.cuda.is_available(), "the emulation ends in the worker"
    for fake, original in patching.cuda_aliases.items():
        fake.data = original
    get_backbone(BACKBONE).device = torch.device("cpu")


border.init = lambda uuid: os.environ.update(CUDA_VISIBLE_DEVICES=uuid)
border.move = move


def as_visitor(token: str, work):
    """work(), as it is called when a visitor of that token pressed a button."""

    def within():
        LocalContext.request.set(type("Request", (), {"headers": Headers({"x-ip-token": token})})())
        return work()

    return contextvars.copy_context().run(within)


def broken(kind: str):
    yield StageEvent("broken", kind, 0.0)
    if kind == "input":
        raise InputError("The clip is too short; take a longer one.")
    if kind == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory")
    if kind == "fault":
        raise KeyError(kind)
    if kind == "killed":
        os._exit(9)


def plain(words: str, *, by: str) -> str:
    if not words:
        raise InputError("There are no words for this.")
    return f"{words}, by {by}, {'in the space' if torch.cuda.is_available() else 'where it is lent'}"


def told(work) -> list[str]:
    try:
        work()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return []


def main() -> dict:
    out: dict = {"cuda in the space": torch.cuda.is_available()}
    warm(BACKBONE)
    backbone = get_backbone(BACKBONE)
    parts = [backbone.vae, backbone.transformer, backbone.text_encoder, loaded_depth_model(DEPTH)]
    out["device"] = str(backbone.device)
    tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    tensors += [backbone.mean, backbone.scale]
    out["not on the GPU"] = sum(tensor not in patching.cuda_aliases for tensor in tensors)

    lent_depth = zerogpu.on_gpu(find_depth, zerogpu.depth_seconds)
    work = {"find_depth": lent_depth, "fill": zerogpu.on_gpu(fill, zerogpu.fill_seconds)}
    lent = zerogpu.on_gpu(broken, lambda kind: 7)
    a = RenderRequest.of(CLIP_A, backbone=BACKBONE, prompt="a red ball", seed=1, steps=200, size=(32, 48), frames=5)
    b = RenderRequest.of(CLIP_B, backbone=BACKBONE, prompt="a blue cube", seed=2, steps=6, size=(32, 48), frames=5)

    # two visitors at once; the first leaves when both have begun
    both, left = threading.Barrier(2, timeout=300), {}

    def leave():
        events = render(a, folder / "a", **work)
        steps = 0
        for event in events:
            if isinstance(event, StepEvent):
                steps += 1
                if steps == 1:
                    both.wait()
                if steps == 3:
                    break
        before = time.perf_counter()
        events.close()
        left.update(steps=steps, seconds=time.perf_counter() - before)

    def stay(name: str, wait: bool):
        last, seen = None, []
        for event in render(b, folder / name, keep=folder / name, **work):
            if isinstance(event, StepEvent) and wait and event.index == 1:
                both.wait()
            seen.append(type(event).__name__)
            last = event
        assert isinstance(last, DoneEvent), last
        return seen

    first = threading.Thread(target=as_visitor, args=["ann", leave])
    first.start()
    out["events"] = as_visitor("bob", lambda: stay("together", True))
    first.join(300)
    out["left"] = left
    out["calls"] = list(Allocator.calls)
    Allocator.calls.clear()
    as_visitor("bob", lambda: stay("alone", False))
    out["calls again"] = list(Allocator.calls)
    Allocator.calls.clear()

    # the same as jobs of the store
    store = JobStore(partial(render, **work), root=folder / "jobs")
    ann, bob = (as_visitor(token, lambda r=r: store.submit(r)) for token, r in (("ann", a), ("bob", b)))
    for view in store.follow(ann):
        if view.step >= 2:  # a follower sees the newest step, not each of them
            store.cancel(ann)
    (*_, last) = store.follow(bob)
    poor = as_visitor("poor", lambda: store.submit(b))
    (*_, refused) = store.follow(poor)
    out["jobs"] = [store.get(ann).view.state, last.state, refused.state, refused.message]
    out["job folders"] = [sorted(p.name for p in store.get(job).folder.iterdir()) for job in (ann, bob)]
    store.close()
    out["job calls"] = list(Allocator.calls)

    # what an analysis is made of stays here; only the depth is found elsewhere
    request = RenderRequest.of(CLIP_A, backbone=BACKBONE, frames=9)
    analysis = as_visitor("cid", lambda: result_of(analyse(request, find_depth=lent_depth)))
    out["analysis"] = [analysis.depth.z.device.type, analysis.clip.frames.device.type, list(analysis.depth.z.shape)]
    out["told"] = {kind: told(lambda kind=kind: list(lent(kind))) for kind in ("input", "memory", "fault", "killed")}
    # a plain function that is lent
    suggest = zerogpu.lend(plain, 7)
    out["suggested"] = as_visitor("ann", lambda: suggest("a ball", by="ann"))
    out["told"]["plain"] = told(lambda: suggest("", by="ann"))
    # what was loaded in this thread is still there, and stays as it is
    out["depth models"] = int(loaded_depth_model(DEPTH) is parts[3])
    for name, given in (("memory", {"memory": "tiles"}), ("compiled", {"compile": True})):
        (*_, failed) = render(b.changed(**given), folder / name, **work)
        out[f"refused {name}"] = failed.message
    out["same backbone"] = get_backbone(BACKBONE) is backbone
    out["told"]["quota"] = as_visitor("poor", lambda: told(lambda: list(lent("quota"))))
    return out


DEPTH = str(ROOT / "assets" / "nano" / "depth")
if __name__ == "__main__":
    result = main()
    print("RESULT", json.dumps(result), flush=True)
