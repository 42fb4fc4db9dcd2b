"""The ``mnist-ae`` commands that look at runs and use their models.

:func:`register` adds them; nothing but argparse is imported until one runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.locate import ModelFolder

AddArguments = Callable[[argparse.ArgumentParser], None]

_SORT_KEYS = (
    "servable", "dataset", "mse", "bce", "worst_mse", "code_size", "bits_per_pixel", "parameters",
    "training_seconds", "model_bytes", "latency_ms", "auroc", "precision_at_10", "knn_accuracy",
)  # fmt: skip


def register(subparsers: Any, add_root: AddArguments) -> None:
    """Adds the commands; each sets ``run``, called with the parsed arguments.

    Args:
      subparsers: Of the main parser.
      add_root: Adds ``--root`` to a parser.
    """
    _register_report(subparsers, add_root)
    _register_compare(subparsers, add_root)
    _register_search(subparsers, add_root)
    _register_compress(subparsers, add_root)
    _register_infer(subparsers, add_root)


def _add(subparsers: Any, name: str, text: str, add_root: AddArguments) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    add_root(parser)
    return parser


def _register_report(subparsers: Any, add_root: AddArguments) -> None:
    parser = _add(subparsers, "report", "open the page of a run", add_root)
    parser.add_argument(
        "name", nargs="?", metavar="RUN",
        help="a run, the beginning of one, or a model, whose last run is taken; default: the last",
    )  # fmt: skip
    parser.add_argument("--path", action="store_true", help="print where it is instead")
    parser.add_argument("--card", action="store_true", help="print the model card instead")
    parser.set_defaults(run=_report)


def _register_compare(subparsers: Any, add_root: AddArguments) -> None:
    parser = _add(subparsers, "compare", "compare runs, best first", add_root)
    parser.add_argument(
        "names", nargs="*", metavar="RUN|MODEL", help="default: the last run of every model"
    )
    parser.add_argument(
        "--sort", choices=_SORT_KEYS, default="mse", metavar="FIGURE",
        help=f"by which figure (%(default)s); one of {', '.join(_SORT_KEYS)}",
    )  # fmt: skip
    parser.add_argument("--reverse", action="store_true", help="worst first")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument("--html", metavar="FILE", help="write a page with the pictures, too")
    parser.set_defaults(run=_compare)


def _register_search(subparsers: Any, add_root: AddArguments) -> None:
    parser = _add(subparsers, "search", "find the training images most like an image", add_root)
    _add_images(parser)
    parser.add_argument("--k", type=_positive, default=10, help="how many (%(default)s)")
    parser.add_argument("--model", metavar="RUN|MODEL", help="default: the last run")
    parser.add_argument("--out", metavar="DIR", default="out", help="where the PNG goes")
    parser.add_argument("--json", action="store_true", help="print a JSON list, write no PNG")
    parser.set_defaults(run=_search)


def _register_compress(subparsers: Any, add_root: AddArguments) -> None:
    compress = _add(subparsers, "compress", "store images as quantised codes", add_root)
    _add_images(compress)
    compress.add_argument("-o", "--out", required=True, metavar="FILE.npz", help="written")
    compress.add_argument(
        "--bits", type=_bits, default=8, help="of each float of a code, 1 to 16 (%(default)s)"
    )
    _add_model(compress)
    compress.add_argument("--json", action="store_true", help="print the figures as JSON")
    compress.set_defaults(run=_compress)
    decompress = _add(subparsers, "decompress", "turn a compressed file into images", add_root)
    decompress.add_argument("file", metavar="FILE.npz")
    decompress.add_argument(
        "-o", "--out", required=True, metavar="FILE",
        help="an IDX file, or a PNG (one image, or a sheet of them)",
    )  # fmt: skip
    _add_model(decompress, "default: the one that compressed it")
    decompress.set_defaults(run=_decompress)


def _register_infer(subparsers: Any, add_root: AddArguments) -> None:
    parser = _add(subparsers, "infer", "run many images through a model, on Beam", add_root)
    parser.add_argument(
        "--input", required=True, metavar="PATH",
        help="an IDX, TFRecord or picture file, or a folder of them",
    )  # fmt: skip
    parser.add_argument("--output", required=True, metavar="FOLDER", help="new, or to be completed")
    _add_model(parser)
    parser.add_argument(
        "--outputs", metavar="NAMES",
        help="comma-separated: code, reconstruction, reconstruction_error, is_anomaly, "
        "predicted_label, probabilities (default: code,reconstruction_error,is_anomaly)",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("parquet", "tfrecord"), default="parquet", help="(%(default)s)"
    )
    parser.add_argument("--with-images", action="store_true", help="write the images as well")
    parser.add_argument(
        "--invert", choices=("auto", "yes", "no"), default="auto",
        help="swap light and dark of pictures; auto: where the border is light (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--beam", action="append", default=[], metavar="KEY=VALUE",
        help="a Beam option, such as runner=FlinkRunner (repeatable)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.set_defaults(run=_infer)


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="PNG, JPEG or IDX file (IDX may be gzipped)"
    )
    parser.add_argument(
        "--invert", choices=("auto", "yes", "no"), default="auto",
        help="swap light and dark; auto: where the border is light (%(default)s)",
    )  # fmt: skip


def _add_model(
    parser: argparse.ArgumentParser, default: str = "default: the most recently pushed model"
) -> None:
    parser.add_argument("--model", metavar="MODEL_OR_FOLDER", help=default)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _bits(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 16:
        raise argparse.ArgumentTypeError(f"{text} is not 1 to 16")
    return number


def _root(args: argparse.Namespace) -> pathlib.Path:
    from serving import locate

    return locate.root_folder(args.root, os.environ)


def _report(args: argparse.Namespace) -> int:
    from pipeline.errors import UserError
    from pipeline.uses import runs

    record = runs.choose(runs.some_runs(str(_root(args))), args.name)
    folder = pathlib.Path(record.report_uri or "")
    page, card = folder / "report.html", folder / "model_card.md"
    wanted = card if args.card else page
    if not wanted.is_file():
        raise UserError(f"run {record.run_id} has no {wanted.name}; run the same model again")
    if args.card:
        print(card.read_text(encoding="utf-8"), end="")
        return 0
    if args.path:
        print(page)
        return 0
    import webbrowser

    print(f"run {record.run_id}: {page}")
    if not webbrowser.open(page.absolute().as_uri()):
        print("no browser was found here; open that file in one", file=sys.stderr)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from pipeline.uses import compare, runs

    records = runs.some_runs(str(_root(args)))
    chosen = (
        [runs.choose(records, name) for name in args.names]
        if args.names
        else runs.last_of_each(records)
    )
    rows = compare.leaderboard(chosen, args.sort, args.reverse)
    if args.html:
        compare.write_page(args.html, rows)
    if args.json:
        print(json.dumps(rows))
    else:
        compare.show(sys.stdout, rows)
        if args.html:
            print(f"wrote {args.html}")
    return 0


def _search(args: argparse.Namespace) -> int:
    import numpy as np

    from pipeline.uses import runs, search
    from serving import images

    loaded = [images.load(path, args.invert) for path in args.images]
    root = str(_root(args))
    record = runs.choose(runs.some_runs(root), args.model)
    outputs = runs.outputs(root, record)
    _quieten()
    queries = np.concatenate([one.images for one in loaded])
    names = [name for one in loaded for name in _names(one)]
    hits = search.search(outputs, queries, args.k)
    if args.json:
        print(
            json.dumps(
                [
                    {"image": name, "neighbours": [hit.as_dict() for hit in found]}
                    for name, found in zip(names, hits)
                ]
            )
        )
        return 0
    for name, found in zip(names, hits):
        print(f"{name}: nearest by the codes of {record.properties['servable']}")
        for rank, hit in enumerate(found, 1):
            digit = "?" if hit.label is None else hit.label
            print(f"  {rank:>3}  a {digit}  distance {hit.distance:9.4f}  training image {hit.row}")
    path = pathlib.Path(args.out) / "search.png"
    search.write_sheet(path, queries[:_SHEET_LIMIT], hits[:_SHEET_LIMIT])
    cut = f" (the first {_SHEET_LIMIT} queries)" if len(queries) > _SHEET_LIMIT else ""
    print(f"wrote {path}{cut}")
    return 0


_SHEET_LIMIT = 64


def _names(loaded: Any) -> list[str]:
    count = len(loaded.images)
    if count == 1:
        return [str(loaded.path)]
    return [f"{loaded.path}[{index}]" for index in range(count)]


def _quieten() -> None:
    """Keeps libraries' chatter away from what people read."""
    import logging
    import warnings

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.simplefilter("ignore", FutureWarning)
    for noisy in ("tensorflow", "absl", "apache_beam"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _client(folder: ModelFolder) -> Any:
    from serving.client import ReconstructionClient

    _quieten()
    path = folder.version_path(folder.latest)
    return ReconstructionClient.from_folder(
        str(path), model=folder.name, version=folder.latest, batch_size=1_000
    )


def _compress(args: argparse.Namespace) -> int:
    import numpy as np

    from pipeline.errors import UserError
    from pipeline.uses import compression
    from serving import images, locate

    loaded = [images.load(path, args.invert) for path in args.images]
    pixels = np.concatenate([one.images for one in loaded])
    if not len(pixels):
        raise UserError(f"{args.images[0]}: holds no images")
    folder = locate.find(args.model, _root(args))
    out = pathlib.Path(args.out)
    with _client(folder) as client:
        compressed = compression.compress(
            client, pixels, bits=args.bits, servable=folder.name, version=folder.latest,
            digest=compression.digest_of(folder.version_path(folder.latest)),
        )  # fmt: skip
        shown = compression.decompress(client, compressed)
    size = compression.save(out, compressed)
    name = f"{folder.name}, {args.bits} bits a float"
    figures = compression.figures(name, size, pixels, shown)
    rows = compression.beside_others(figures, pixels, shown)
    if args.json:
        print(
            json.dumps(
                {
                    "file": str(out), "images": len(pixels), **dataclasses.asdict(figures),
                    "beside": [dataclasses.asdict(row) for row in rows],
                }
            )
        )  # fmt: skip
        return 0
    _show_codecs(rows)
    print(
        f"wrote {out}: {len(pixels):,} images in {size:,} bytes, {figures.ratio:.1f} times smaller"
    )
    return 0


def _show_codecs(rows: list[Any]) -> None:
    from rich.table import Table

    from pipeline.console import make_console

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for heading in ("bytes", "bits/pixel", "ratio", "PSNR dB", "SSIM"):
        table.add_column(heading, justify="right")
    for row in rows:
        psnr = "-" if row.psnr is None else f"{row.psnr:.2f}"
        table.add_row(
            row.codec, f"{row.bytes:,}", f"{row.bits_per_pixel:.3f}", f"{row.ratio:.1f}", psnr,
            f"{row.ssim:.4f}",
        )  # fmt: skip
    make_console(sys.stdout).print(table)


def _decompress(args: argparse.Namespace) -> int:
    from pipeline.errors import UserError
    from pipeline.uses import compression
    from serving import images, locate

    path = pathlib.Path(args.file)
    compressed = compression.load(path)
    folder = locate.find(args.model or compressed.servable, _root(args))
    version = folder.latest
    if args.model is None and compressed.version in folder.versions:
        version = compressed.version
    where = folder.version_path(version)
    if compression.digest_of(where) != compressed.digest:
        raise UserError(
            f"{path}: was compressed with version {compressed.version} of "
            f"{compressed.servable}, and {where} has other weights; name that version's folder "
            "with --model"
        )
    with _client(dataclasses.replace(folder, version=version)) as client:
        shown = compression.decompress(client, compressed)
    out = pathlib.Path(args.out)
    if out.suffix.lower() == ".png":
        side = max(1, round(len(shown) ** 0.5))
        images.write_sheet(out, [list(shown[i : i + side]) for i in range(0, len(shown), side)])
    else:
        from components.mnist_example_gen.idx import write_idx

        partial = out.with_name(f".{out.name}.partial")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_idx(str(partial), shown)
            os.replace(partial, out)
        except OSError as e:
            raise UserError(f"{out}: cannot be written ({e.strerror})") from None
    print(f"wrote {out}: {len(shown):,} images")
    return 0


def _infer(args: argparse.Namespace) -> int:
    import contextlib
    import io
    import logging
    import time

    from pipeline import config
    from pipeline.errors import UserError
    from serving import locate

    folder = locate.find(args.model, _root(args))
    if not os.path.exists(args.input):
        raise UserError(f"{args.input}: no such file or folder")
    chosen = [option.lstrip("-") for option in args.beam]
    if not any(option.startswith("runner=") for option in chosen):
        # Some shards at a time: reading and writing one, the other has the model.
        workers = min(4, max(2, os.cpu_count() or 2))
        local = ["direct_running_mode=multi_threading", f"direct_num_workers={workers}"]
        chosen = [*local, *chosen]
    options = config.load(None, [f"beam.{option}" for option in chosen])
    _quieten()
    # TFX and Beam read the command line as flags of their own.
    del sys.argv[1:]
    from pipeline.beam_options import beam_args
    from pipeline.uses import batch

    # What a worker has to say comes with the error, without its traceback.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    job = batch.Job(
        input=args.input,
        output=args.output,
        model_path=str(folder.version_path(folder.latest)),
        outputs=tuple(args.outputs.split(",")) if args.outputs else batch.DEFAULT_OUTPUTS,
        file_format=args.format,
        with_images=args.with_images,
        invert=args.invert,
    )
    started = time.monotonic()
    with contextlib.redirect_stderr(io.StringIO()):
        result = batch.run(job, beam_args(options))
    seconds = time.monotonic() - started
    if args.json:
        print(json.dumps({**dataclasses.asdict(result), "seconds": seconds}))
        return 0
    before = f", {result.done_before:,} of them from before" if result.done_before else ""
    rate = f", {result.images / seconds:,.0f} a second" if result.images else ""
    print(f"{result.output}: {result.shards:,} files{before}; {result.images:,} images{rate}")
    return 0
