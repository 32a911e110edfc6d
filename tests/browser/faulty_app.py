"""`python app.py` on a machine whose faults a test switches on and off, by files in a folder.

Usage: faulty_app.py FOLDER [arguments of app.py]. While FOLDER/full exists, videos and reports are written to
/dev/full, where the kernel itself says that no space is left. While FOLDER/slow exists, decoding goes on for ever.
"""

import os
import runpy
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(sys.argv.pop(1))
sys.path[0] = str(ROOT)
make_folder = tempfile.mkdtemp


def mkdtemp(suffix=None, prefix=None, dir=None):
    made = make_folder(suffix, prefix, dir)
    if prefix == ".write-" and (FOLDER / "full").exists():
        for name in ("part", "part.mp4"):
            os.symlink("/dev/full", os.path.join(made, name))
    return made


if __name__ == "__main__":
    from pipeline.prior.backbone import Backbone

    decode = Backbone.decode

    def slow(self, z):
        while (FOLDER / "slow").exists():
            time.sleep(0.05)
        return decode(self, z)

    tempfile.mkdtemp = mkdtemp
    Backbone.decode = slow
    sys.argv[0] = str(ROOT / "app.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
