"""The serving commands alone: ``python -m serving serve``, ``... predict``, and so on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from serving import cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; see :mod:`serving.cli`.

    Args:
      arguments: The command line; that of the process by default.

    Returns:
      The exit code: 0, or 2 for unusable input, or 3 for a server's failure.
    """
    parser = argparse.ArgumentParser(prog="mnist-ae")
    cli.register(parser.add_subparsers(required=True, metavar="COMMAND"))
    args = parser.parse_args(arguments)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        print(f"mnist-ae: error: {error}", file=sys.stderr)
        return int(code)


if __name__ == "__main__":
    sys.exit(main())
