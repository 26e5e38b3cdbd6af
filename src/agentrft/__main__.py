"""`python -m agentrft` is the command line."""

from agentrft.cli import main

if __name__ == "__main__":
    main()
