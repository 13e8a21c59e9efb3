"""Measurements, each a command of its own."""

import os
from pathlib import Path

# Children import what the benchmarks hand them, and take nothing from the working directory.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]).strip(
    ":"
)
