"""The `opid` command, one file a command."""
