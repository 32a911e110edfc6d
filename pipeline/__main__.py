"""The command line: `python -m pipeline COMMAND`, see --help."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from pipeline import InputError


def main(arguments: list[str] | None = None) -> int:
    """The exit code. Whatever the user can mend is said in one line."""
    try:
        from pipeline.cli.parser import parser  # takes a while, in which Ctrl-C may come, too

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
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


def _end(*_: object) -> NoReturn:
    sys.exit(143)  # unwinds what is being done, so that nothing half written is left


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
