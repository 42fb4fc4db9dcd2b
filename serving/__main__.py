"""``python -m serving FOLDER``: serves a model where only this package is needed.

The check before the push starts it in a process of its own; people use
``mnist-ae serve``.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
import sys

from serving import launcher, locate, quiet
from serving.errors import Error


def main() -> int:
    """Serves until SIGTERM or Ctrl-C.

    Returns:
      0, or the ``exit_code`` of the error that was shown.
    """
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    parser.add_argument("folder", help="a folder with numbered SavedModel versions")
    parser.add_argument("--backend", choices=launcher.BACKENDS, default="embedded")
    parser.add_argument("--port", type=int, default=0, help="gRPC port; 0 is any free one")
    parser.add_argument("--rest-port", type=int, default=0, help="REST port; 0 is any free one")
    parser.add_argument("--drain-seconds", type=float, default=30.0)
    parser.add_argument("--load-retries", type=int, default=2)
    args = parser.parse_args()
    quiet.settle_environment(3)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        plan = launcher.Plan(
            locate.find(args.folder, pathlib.Path(locate.DEFAULT_ROOT)),
            None,
            "127.0.0.1",
            args.port,
            args.rest_port,
            options={"drain_timeout": args.drain_seconds, "max_load_retries": args.load_retries},
        )
        return launcher.serve(plan, args.backend, lambda text: print(text, flush=True))
    except Error as e:
        print(f"mnist-ae: error: {e}", file=sys.stderr)
        return e.exit_code


if __name__ == "__main__":
    sys.exit(main())
