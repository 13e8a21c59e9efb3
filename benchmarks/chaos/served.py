"""`opid serve` for a chaos round: `python -m benchmarks.chaos.served ROOT PORT CONFIG`."""

from __future__ import annotations

import sys
from pathlib import Path

from flows import settings

if __name__ == "__main__":
    settings.apply(sys.argv[1])
    from rich.console import Console

    from flows.cli.serve import serve
    from opid_core.errors import OpidError

    try:
        serve([Path(sys.argv[3])], None, int(sys.argv[2]), "chaos", Console(width=200))
    except OpidError as error:
        sys.exit(f"error: {error}")
