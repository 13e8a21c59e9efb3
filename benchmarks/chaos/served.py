"""`opid serve` for a chaos round: `python -m benchmarks.chaos.served ROOT PORT CONFIG`."""

from __future__ import annotations

import sys
from pathlib import Path

from flows import settings

if __name__ == "__main__":
    settings.apply(sys.argv[1])
    from flows.cli.serve import serve_until_interrupted
    from opid_core.errors import OpidError

    try:
        serve_until_interrupted([Path(sys.argv[3])], None, int(sys.argv[2]), "chaos")
    except OpidError as error:
        sys.exit(f"error: {error}")
