"""``mnist-ae search``, ``compress``, ``decompress`` and ``infer``: what the code is good for."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import pathlib
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from pipeline import output_files
from pipeline.commands import options
from pipeline.commands.connection import in_folder
from pipeline.commands.group import command
from pipeline.commands.options import COUNT, Integer, flag, option
from pipeline.errors import UserError
from serving import locate

if TYPE_CHECKING:
    from serving.images import Loaded

_SHEET_LIMIT = 64


@command()
@options.images
@options.root
@option("--k", "images to find", type=COUNT, default=10)
@option("--model RUN|MODEL", "by whose codes", show_default="the last run")
@option("--out DIR", "where the PNG goes", default="out")
@options.as_json("a JSON list, write no PNG")
def search(
    files: list[Loaded],
    root: str,
    k: int,
    model: str | None,
    out: str,
    as_json: bool,
) -> None:
    """Find the training images most like an image."""
    import numpy as np

    from pipeline import console, runs
    from serving import images
    from serving.uses import search

    record = runs.choose(runs.some_runs(root), model)
    outputs = runs.outputs(root, record)
    console.quieten()
    queries = np.concatenate([loaded.images for loaded in files])
    names = [name for loaded in files for name in loaded.names]
    index = outputs.train_index
    if not index:
        raise UserError(f"{outputs.index}: holds no index; run the same model again")
    hits, pictures = search.search(str(outputs.model), index, queries, k)
    if as_json:
        print(json.dumps([{"image": name, "neighbours": hit} for name, hit in zip(names, hits)]))
        return
    for name, near in zip(names, hits):
        print(f"{name}: nearest by the codes of {record.properties['servable']}")
        for rank, hit in enumerate(near, 1):
            digit = "?" if hit["label"] is None else hit["label"]
            print(
                f"  {rank:>3}  a {digit}  distance {hit['distance']:9.4f}  "
                f"training image {hit['row']}"
            )
    path = pathlib.Path(out) / "search.png"
    # A gap tells the question from the answers.
    gap = np.full(queries.shape, images.GROUND, np.uint8)
    rows = np.concatenate([np.stack([queries, gap], axis=1), pictures], axis=1)[:_SHEET_LIMIT]
    images.write_sheet(path, rows, columns=rows.shape[1])
    cut = f" (the first {_SHEET_LIMIT} queries)" if len(queries) > _SHEET_LIMIT else ""
    print(f"wrote {path}{cut}")


@command()
@options.images
@options.root
@option("-o --out FILE.npz", "the file that is written", required=True)
@option("--bits", "bits of each float of a code", type=Integer(1, 16), default=8)
@options.model()
@options.as_json("the figures as JSON")
def compress(
    files: list[Loaded],
    root: str,
    out: str,
    bits: int,
    model: str | None,
    as_json: bool,
) -> None:
    """Store images as quantised codes."""
    import numpy as np

    from serving.uses import codecs
    from serving.uses import compress as codec

    pixels = np.concatenate([loaded.images for loaded in files])
    if not len(pixels):
        raise UserError(f"{files[0].path}: holds no images")
    folder = locate.find(model, pathlib.Path(root))
    with in_folder(folder, batch_size=1_000) as client:
        compressed = codec.compress(
            client,
            pixels,
            bits=bits,
            servable=folder.name,
            version=folder.latest,
            digest=codec.digest_of(folder.version_path(folder.latest)),
        )
        shown = codec.decompress(client, compressed)
    size = codec.save(pathlib.Path(out), compressed)
    figures = codecs.figures(f"{folder.name}, {bits} bits a float", size, pixels, shown)
    rows = codecs.beside_others(figures, pixels, shown)
    if as_json:
        result = {
            "file": str(pathlib.Path(out)),
            "images": len(pixels),
            **dataclasses.asdict(figures),
            "beside": [dataclasses.asdict(row) for row in rows],
        }
        print(json.dumps(result))
        return
    _show_codecs(rows)
    if len(pixels) > codecs.COMPARED:
        print(f"compared by the first {codecs.COMPARED:,} images")
    print(
        f"wrote {out}: {len(pixels):,} images in {size:,} bytes, {figures.ratio:.1f} times smaller"
    )


def _show_codecs(rows: list[Any]) -> None:
    from pipeline import console

    headings = ("bytes", "bits/pixel", "ratio", "PSNR dB", "SSIM")
    table = console.table("", *headings, right=headings)
    for row in rows:
        table.add_row(
            row.codec,
            f"{row.bytes:,}",
            f"{row.bits_per_pixel:.3f}",
            f"{row.ratio:.1f}",
            "-" if row.psnr is None else f"{row.psnr:.2f}",
            f"{row.ssim:.4f}",
        )
    console.make_console(sys.stdout).print(table)


@command()
@click.argument("file", metavar="FILE.npz")
@option("-o --out FILE", "an IDX file, or a PNG (one image, or a sheet of them)", required=True)
@options.root
@options.model(default="the one that compressed it")
def decompress(file: str, out: str, root: str, model: str | None) -> None:
    """Turn a compressed file into images."""
    from components.mnist_example_gen import idx
    from serving import images
    from serving.uses import compress as codec

    compressed = codec.load(pathlib.Path(file))
    folder = locate.find(model or compressed.servable, pathlib.Path(root))
    version = folder.latest
    if model is None and compressed.version in folder.versions:
        version = compressed.version
    where = folder.version_path(version)
    if codec.digest_of(where) != compressed.digest:
        raise UserError(
            f"{file}: was compressed with version {compressed.version} of "
            f"{compressed.servable}, and {where} has other weights; name that version's folder "
            "with --model"
        )
    with in_folder(dataclasses.replace(folder, version=version), batch_size=1_000) as client:
        shown = codec.decompress(client, compressed)
    path = pathlib.Path(out)
    if path.suffix.lower() == ".png":
        images.write_grid(path, shown)
    else:
        with output_files.writing(path) as target:
            idx.write_idx(target.name, shown)
    print(f"wrote {path}: {len(shown):,} images")


@command()
@option(
    "--input PATH",
    "an IDX, TFRecord or picture file, or a folder of them",
    to="source",
    required=True,
)
@option("--output FOLDER", "new, or to be completed", required=True)
@options.root
@options.model()
@option(
    "--outputs NAMES",
    "comma-separated: code, reconstruction, reconstruction_error, anomaly_score, "
    "is_anomaly, predicted_label, probabilities",
    show_default="code,reconstruction_error,is_anomaly",
)
@option(
    "--format",
    "of the files that are written",
    to="file_format",
    type=click.Choice(["parquet", "tfrecord"]),
    default="parquet",
)
@flag("--with-images", "write the images as well")
@options.invert
@options.beam
@options.as_json("what was done as JSON")
def infer(
    source: str,
    output: str,
    root: str,
    model: str | None,
    outputs: str | None,
    file_format: str,
    with_images: bool,
    invert: Any,
    beam: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run many images through a model, on Beam."""
    from pipeline import config, console
    from pipeline.beam_options import beam_args, check_engine

    folder = locate.find(model, pathlib.Path(root))
    if not os.path.exists(source):
        raise UserError(f"{source}: no such file or folder")
    chosen = [option.lstrip("-") for option in beam]
    if not any(option.startswith("runner=") for option in chosen):
        # Some shards at a time: reading and writing one, the other has the model.
        workers = min(4, max(2, os.cpu_count() or 2))
        local = ["direct_running_mode=multi_threading", f"direct_num_workers={workers}"]
        chosen = [*local, *chosen]
    configuration = config.load(None, [f"beam.{option}" for option in chosen])
    check_engine(configuration)
    console.quieten()
    # TFX and Beam read the command line as flags of their own.
    del sys.argv[1:]
    from components import image_sources
    from serving.uses import infer as inference

    # What a worker has to say comes with the error, without its traceback.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    job = inference.InferenceJob(
        input=source,
        sources=image_sources.find_sources(source, invert),
        output=output,
        model_path=str(folder.version_path(folder.latest)),
        outputs=tuple(outputs.split(",")) if outputs else inference.DEFAULT_OUTPUTS,
        file_format=file_format,
        with_images=with_images,
    )
    started = time.monotonic()
    with contextlib.redirect_stderr(io.StringIO()):
        result = inference.run(job, beam_args(configuration))
    seconds = time.monotonic() - started
    if as_json:
        print(json.dumps({**dataclasses.asdict(result), "seconds": seconds}))
        return
    before = f", {result.done_before:,} of them from before" if result.done_before else ""
    rate = f", {result.images / seconds:,.0f} a second" if result.images else ""
    print(f"{result.output}: {result.shards:,} files{before}; {result.images:,} images{rate}")
