"""The `opid` command's parts, a file a group of commands."""
