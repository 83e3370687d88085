"""`python -m edgeserve`: the same as the `edgeserve` command."""

from edgeserve.cli.main import main

if __name__ == "__main__":
    main()
