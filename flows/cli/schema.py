"""`opid schema`."""

from __future__ import annotations

from flows.cli.common import app


@app.command()
def schema() -> None:
    """Print the JSON schema of a config file, with which an editor completes and checks keys.

    Example: [bold]opid schema[/]
    """
    from flows.schema import text

    print(text(), end="")
