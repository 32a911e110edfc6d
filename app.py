"""The app in a browser: `python app.py`, then open the address it prints."""

from __future__ import annotations

import argparse
import atexit
import gc
import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipeline.heap import keep_freed_memory

keep_freed_memory()  # before libraries start threads
gc.disable()  # until the page is built: looking for garbage among what is imported takes a fifth of the start

with suppress(ImportError):  # on a shared GPU it must come before anything that touches CUDA; elsewhere it does nothing
    import spaces  # noqa: F401

from pipeline import InputError
from pipeline.known.first_frame import inpaint
from pipeline.models import hub, table
from pipeline.models.caption import caption
from pipeline.render.analysis import analyse, find_depth
from pipeline.render.expected import measure
from pipeline.render.loaded import get_backbone, warm
from pipeline.render.run import render
from pipeline.render.worker import fill
from ui import zerogpu
from ui.jobs import JobStore
from ui.layout import build, launch_options

EXAMPLES = Path(__file__).resolve().parent / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    backbone = os.environ.get("RECAPTURE_BACKBONE")
    add("--backbone", default=backbone, help="name, folder or hub id (default: $RECAPTURE_BACKBONE, else what suits)")
    add("--depth-model", default=None, help="chosen at first: a name, a folder or a hub id (default: the backbone's)")
    # None leaves it to Gradio, and so to GRADIO_SERVER_NAME, GRADIO_SERVER_PORT and GRADIO_SHARE
    add("--host", default=None, help="address to listen on (default: $GRADIO_SERVER_NAME, or this machine only)")
    add("--port", type=int, default=None, help="port (default: $GRADIO_SERVER_PORT, or the first free from 7860)")
    add("--accept", default=None, metavar="MODEL", help="you accept the terms of the backbone ($RECAPTURE_ACCEPT)")
    add("--share", action="store_true", default=None, help="make a public link through Gradio")
    args = parser.parse_args()
    if args.backbone is None:
        args.backbone, why = hub.default_backbone()
        print(why, flush=True)
    accepted = [name.strip() for name in (args.accept or os.environ.get("RECAPTURE_ACCEPT", "")).split(",")]
    try:
        table.check_accepted(args.backbone, accepted)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")

    work = {
        "find_depth": zerogpu.on_gpu(find_depth, zerogpu.depth_seconds),
        "fill": zerogpu.on_gpu(fill, zerogpu.fill_seconds),
        "paint": zerogpu.lend(inpaint, seconds=120),
    }
    store = JobStore(partial(render, **work))
    atexit.register(store.close)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that a stopped service, too, removes its visitors' files
    page = build(
        args.backbone,
        store,
        examples=EXAMPLES,
        analyse=partial(analyse, find_depth=work["find_depth"]),
        depth_model=args.depth_model,
        describe=zerogpu.lend(caption, seconds=60),
    )
    gc.freeze()
    gc.enable()
    if zerogpu.ACTIVE:
        # what is not loaded by now, in this thread, would be loaded in each call anew
        warm(args.backbone, args.depth_model)
    else:
        threading.Thread(target=_warm, args=[args.backbone], name="warm", daemon=True).start()
    page.launch(server_name=args.host, server_port=args.port, share=args.share, **launch_options(store, EXAMPLES))


def _warm(backbone: str) -> None:
    try:
        if Path(hub.resolve(backbone)).is_dir():  # a download waits until somebody wants the model
            warm(backbone)
            measure(get_backbone(backbone), moments=5)
    except InputError as error:  # whoever asks for it will be told
        logging.getLogger(__name__).warning("%s", error)


if __name__ == "__main__":
    main()
