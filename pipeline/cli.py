"""The ``mnist-ae`` command: which commands there are, and how each ends.

A command's module is imported when it is called; help, the list of models and
mistakes in a configuration are answered at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from pipeline.commands import group
from serving.errors import Error

PROG = "mnist-ae"

# Name: where the command is, and its line in the list.
COMMANDS = {
    "run": ("pipeline.commands.run:run", "run the pipeline: digits in, a served model out"),
    "models": ("pipeline.commands.models:models", "list the autoencoders"),
    "data": ("pipeline.commands.data:data", "show which digits would be used, and from where"),
    "runs": ("pipeline.commands.runs:runs", "list past runs"),
    "report": ("pipeline.commands.runs:report", "open the page of a run"),
    "compare": ("pipeline.commands.runs:compare", "compare runs, best first"),
    "search": ("pipeline.commands.uses:search", "find the training images most like an image"),
    "compress": ("pipeline.commands.uses:compress", "store images as quantised codes"),
    "decompress": ("pipeline.commands.uses:decompress", "turn a compressed file into images"),
    "infer": ("pipeline.commands.uses:infer", "run many images through a model, on Beam"),
    "serve": ("pipeline.commands.serving:serve", "serve a pushed model over gRPC and REST"),
    "play": (
        "pipeline.commands.serving:play",
        "draw digits on a page, see what a model makes of them",
    ),
    "predict": (
        "pipeline.commands.predict:predict",
        "reconstruct images; writes original and reconstruction side by side",
    ),
    "encode": ("pipeline.commands.predict:encode", "print or write the codes of images"),
    "decode": ("pipeline.commands.predict:decode", "turn codes back into images"),
    "score": (
        "pipeline.commands.predict:score",
        "print the reconstruction error of images and whether they are anomalies",
    ),
    "classify": (
        "pipeline.commands.predict:classify",
        "say which digits images show, for models that can",
    ),
    "generate": ("pipeline.commands.predict:generate", "draw new images, for models that can"),
    "status": (
        "pipeline.commands.serving:status",
        "show the versions of a model, on a server or in its folder",
    ),
    "rollout": ("pipeline.commands.serving:rollout", "move the version labels stable and canary"),
    "ingest": ("pipeline.commands.continuous:ingest", "publish new images as a span"),
    "spans": (
        "pipeline.commands.continuous:spans_",
        "list the spans: what came, how it differs, how it is used",
    ),
    "watch": ("pipeline.commands.continuous:watch", "retrain whenever a span comes in"),
    "history": (
        "pipeline.commands.continuous:history",
        "what came, what was decided, what is serving, span by span",
    ),
    "kubeflow": ("kubeflow.commands:kubeflow", "the same pipeline on Kubeflow Pipelines"),
}


class _Root(group.LazyGroup):
    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        """Runs the command line and ends the process."""
        sys.exit(main(args))


mnist_ae = _Root(
    PROG,
    table=COMMANDS,
    subcommand_metavar="COMMAND",
    help="Train, evaluate and serve autoencoders on MNIST.",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 100,
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
      0, or the ``exit_code`` of the error that was shown: 2 for what the user
      can put right, 1 for a failed run, 3 for a server.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with mnist_ae.make_context(PROG, arguments) as context:
            return mnist_ae.invoke(context) or 0
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.UsageError as e:
        print(group.describe(e), file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print(f"\n{PROG}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe, such as head, has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Error as e:
        print(f"{PROG}: error: {' '.join(str(e).split())}", file=sys.stderr)
        return e.exit_code


if __name__ == "__main__":
    sys.exit(main())
