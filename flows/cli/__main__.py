"""`python -m flows.cli`: the `opid` command where no script is installed."""

from flows.cli.main import main

if __name__ == "__main__":
    main()
