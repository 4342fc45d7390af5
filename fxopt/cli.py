"""The entry point of the `fxopt` command. The commands themselves are in fxopt/commands.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence

EXTRA = ("typer", "rich", "jinja2", "markupsafe")
USER_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a bug in fxopt, 2 something the user can mend."""
    try:
        from fxopt.commands import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        print(f'The fxopt command needs {error.name}: run pip install "fxopt[cli]".', file=sys.stderr)
        raise SystemExit(USER_ERROR) from None
    app(args=None if arguments is None else list(arguments), prog_name="fxopt")


if __name__ == "__main__":
    main()
