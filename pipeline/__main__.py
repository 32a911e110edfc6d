"""The command line: `python -m pipeline COMMAND`, see --help."""

import sys

from pipeline.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
