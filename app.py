"""The app in a browser: `python app.py`, then open the address it prints."""

from __future__ import annotations

import argparse
import atexit
import signal
import sys
from pathlib import Path

try:  # on a shared GPU this must come before anything that touches CUDA; elsewhere it does nothing
    import spaces
except ImportError:
    spaces = None

from pipeline.render import analyse, render
from ui.jobs import JobStore
from ui.layout import build, launch_options

EXAMPLES = Path(__file__).resolve().parent / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="nano", help="a name, a folder or a hub id (default: nano)")
    parser.add_argument("--depth-model", default=None, help="chosen at first: a name, a folder or a hub id")
    parser.add_argument("--host", default=None, help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=None, help="port to listen on (default: the first free from 7860)")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio")
    args = parser.parse_args()

    on_gpu = spaces.GPU(duration=120) if spaces else lambda function: function
    store = JobStore(on_gpu(render))
    atexit.register(store.close)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that a stopped service, too, removes its visitors' files
    page = build(args.backbone, store, examples=EXAMPLES, analyse=on_gpu(analyse), depth_model=args.depth_model)
    page.launch(server_name=args.host, server_port=args.port, share=args.share, **launch_options(store, EXAMPLES))


if __name__ == "__main__":
    main()
