"""Progress on a terminal, or as lines."""

from __future__ import annotations

import shutil
import sys

from tqdm import tqdm


class Progress:
    """A bar on a terminal, else a line for each new stage."""

    def __enter__(self) -> Progress:
        self.bar = None
        self.last = ""
        if sys.stderr.isatty():
            layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"
            # a size that tqdm need not ask for: it shows nothing on terminals that do not know their own
            columns = shutil.get_terminal_size().columns
            self.bar = tqdm(total=1.0, bar_format=layout, file=sys.stderr, leave=False, ncols=columns, nrows=24)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, message: str, fraction: float, detail: str = "") -> None:
        if self.bar is not None:
            self.bar.set_description_str(f"{message}{detail}", refresh=False)
            self.bar.update(max(0.0, fraction - self.bar.n))
            self.bar.refresh()
        elif message != self.last:
            print(message, flush=True)
        self.last = message
