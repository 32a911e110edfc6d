"""The command line: `python -m pipeline COMMAND`, see --help."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from pipeline import InputError
from pipeline.heap import keep_freed_memory


def main(arguments: list[str] | None = None) -> int:
    """The exit code. Whatever the user can mend is said in one line."""
    try:
        from pipeline.cli.parser import parser

        options = parser().parse_args(arguments)
        return options.run(options) or 0
    except InputError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except BrokenPipeError:  # nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        name = os.path.basename(str(error.filename or ""))[:60]
        print(f"error: {error.strerror or error}{f': {name}' if name else ''}", file=sys.stderr)
        return 2


def _end(number: int, _: object) -> NoReturn:
    """Unwinds what is being done, so that nothing half written is left.

    Ctrl-C, too: a KeyboardInterrupt that passes through `exec`, as in imports, lets Python end itself by the signal.
    """
    if number == signal.SIGINT:
        print("Interrupted.", file=sys.stderr)
    sys.exit(128 + number)


if __name__ == "__main__":
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    sys.exit(main())
