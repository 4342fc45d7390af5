"""`python -m fxopt` is the `fxopt` command."""

from fxopt.cli import main

if __name__ == "__main__":
    main()
