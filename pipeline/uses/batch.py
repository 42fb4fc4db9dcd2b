"""Batch inference: any number of images through a pushed model, on Beam.

The input is cut into shards in a fixed order and every shard becomes one output
file, which appears whole. What a killed inference left is found again by the
names, so that the same command completes it, without an image twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from components import features, inference
from components.mnist_example_gen import idx
from components.mnist_example_gen.slices import cut
from pipeline.errors import RunError, UserError
from pipeline.locking import locked
from serving import images as image_files

# Readers of a folder of Parquet files pass over names that begin so.
MANIFEST_FILE = "_inference.json"
DEFAULT_OUTPUTS = ("code", "reconstruction_error", "is_anomaly")

_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_PICTURES_A_SHARD = 5_000
_RECORDS_HINT = "tfrecord"
# How a worker's traceback ends where an input cannot be used.
_BAD_INPUT = re.compile(r"[\w.]*\.(DataError|InputError): ")


@dataclasses.dataclass(frozen=True)
class PictureSource:
    """Picture files.

    Attributes:
      folder: Where they are; names are given below it.
      paths: Below ``folder``.
      invert: See :func:`serving.images.load`.
      start: Always 0; every picture has its own name.
    """

    folder: str
    paths: tuple[str, ...]
    invert: image_files.Invert = "auto"
    start: int = 0

    @property
    def name(self) -> str:
        """See Source."""
        return self.folder

    def batches(self) -> Iterator[inference.Batch]:
        """See Source."""
        for start in range(0, len(self.paths), inference.CHUNK):
            names = self.paths[start : start + inference.CHUNK]
            loaded = [
                image_files.load(os.path.join(self.folder, name), self.invert).images
                for name in names
            ]
            unknown = np.full(len(names), features.NO_LABEL)
            yield inference.Batch(np.concatenate(loaded), unknown, names)


@dataclasses.dataclass(frozen=True)
class Job:
    """What to infer.

    Attributes:
      input: A file or folder.
      output: A folder.
      model_path: A version's folder.
      outputs: Columns that the model fills.
      file_format: ``parquet`` or ``tfrecord``.
      with_images: Whether the images are written, too.
      invert: Of pictures; see :func:`serving.images.load`.
    """

    input: str
    output: str
    model_path: str
    outputs: tuple[str, ...] = DEFAULT_OUTPUTS
    file_format: str = inference.PARQUET
    with_images: bool = False
    invert: image_files.Invert = "auto"


@dataclasses.dataclass(frozen=True)
class Result:
    """What an inference did.

    Attributes:
      output: The folder.
      shards: Files in it.
      done_before: Of these, those that an earlier, interrupted one had written.
      images: Images of the others.
    """

    output: str
    shards: int
    done_before: int
    images: int


def run(job: Job, beam_args: Sequence[str]) -> Result:
    """Infers what is still to be inferred.

    Args:
      job: What.
      beam_args: Beam's flags.

    Raises:
      UserError: Unusable input, an output that the model does not give, or a
        folder with another inference's output.
      RunError: A worker failed for another reason.
    """
    sources = find_sources(job.input, job.invert)
    try:
        inference.Predictor(job.model_path, job.outputs)
    except (ValueError, OSError) as e:
        raise UserError(f"{job.model_path}: {e}") from None
    suffix = inference.SUFFIXES[job.file_format]
    width = len(str(len(sources)))
    names = [
        f"part-{i:0{max(5, width)}d}-of-{len(sources):05d}{suffix}" for i in range(len(sources))
    ]
    with locked(job.output):
        _check_manifest(job, sources)
        present = set(os.listdir(job.output))
        for name in present:
            # What was being written when an earlier inference was killed.
            if name.startswith(".part-"):
                os.remove(os.path.join(job.output, name))
        shards = [
            inference.Shard(
                os.path.join(job.output, name), source, job.outputs, job.with_images,
                job.file_format,
            )
            for name, source in zip(names, sources)
            if name not in present
        ]  # fmt: skip
        count = _infer(shards, job.model_path, beam_args) if shards else 0
    return Result(job.output, len(names), len(names) - len(shards), count)


def _infer(shards: list[inference.Shard], model_path: str, beam_args: Sequence[str]) -> int:
    p = beam.Pipeline(options=PipelineOptions(list(beam_args)))
    counter = beam.metrics.Metrics.counter("inference", "images")

    def count(images: int) -> None:
        counter.inc(images)

    _ = p | beam.Create(shards) | inference.WriteShards(model_path) | "Count" >> beam.Map(count)
    try:
        result = p.run()
        result.wait_until_finish()
    except Exception as e:
        # Beam's runners add where in their graph it was, or a worker's traceback.
        lines = [line for line in str(e).partition(" [while running")[0].splitlines() if line]
        reason = lines[-1] if lines else type(e).__name__
        bad_input = _BAD_INPUT.match(reason)
        kind = UserError if bad_input or hasattr(e, "exit_code") else RunError
        reason = _BAD_INPUT.sub("", reason)
        raise kind(f"{reason}; the same command goes on from here") from e
    found = result.metrics().query(beam.metrics.MetricsFilter().with_name("images"))
    return sum(counted.result for counted in found["counters"])


def find_sources(path: str, invert: image_files.Invert = "auto") -> list[inference.Source]:
    """Cuts a file, or all image files below a folder, into shards, in a fixed order.

    IDX files, gzipped or not, are found by their first bytes, with the labels
    beside them; pictures by their names' endings; TFRecord files by ``tfrecord``
    in their names.

    Raises:
      UserError: Nothing there, or nothing of that kind.
      DataError: A damaged IDX file.
    """
    if os.path.isfile(path):
        folder, files = os.path.dirname(path) or ".", [os.path.basename(path)]
    elif os.path.isdir(path):
        folder = path
        files = sorted(
            os.path.relpath(os.path.join(parent, name), folder)
            for parent, _, names in os.walk(folder)
            for name in names
            if not name.startswith(".")
        )
    else:
        raise UserError(f"{path}: no such file or folder")
    sources: list[inference.Source] = []
    pictures = []
    for name in files:
        full = os.path.join(folder, name)
        if name.lower().endswith(_PICTURE_SUFFIXES):
            pictures.append(name)
        elif _is_idx_images(full):
            sources += _idx_sources(full)
        elif _RECORDS_HINT in name.lower():
            sources.append(inference.RecordSource(full))
    for start in range(0, len(pictures), _PICTURES_A_SHARD):
        names = tuple(pictures[start : start + _PICTURES_A_SHARD])
        sources.append(PictureSource(folder, names, invert))
    if not sources:
        raise UserError(
            f"{path}: no images; wanted are IDX files, pictures such as PNG, or TFRecord files "
            "with 'tfrecord' in their names"
        )
    return sources


def _is_idx_images(path: str) -> bool:
    import gzip

    with open(path, "rb") as f:
        start = f.read(4)
    if start[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as f:
                start = f.read(4)
        except (OSError, EOFError):
            return False
    return start == b"\x00\x00\x08\x03"


def _idx_sources(path: str) -> list[inference.Source]:
    # The labels are called as the images are.
    stem = path.removesuffix(".gz")
    candidates = [path]
    if stem.endswith(idx.IMAGES):
        labels = stem.removesuffix(idx.IMAGES) + idx.LABELS
        candidates += [p for p in (labels, labels + ".gz") if os.path.isfile(p)]
        files = idx.find_split_files(candidates, path)
    else:
        files = idx.SplitFiles(images=path, labels=None)
    return [inference.IdxSource(s.files, s.start, s.stop) for s in cut(files)]


def _check_manifest(job: Job, sources: Sequence[inference.Source]) -> None:
    """Writes down what the folder holds, or refuses a folder that holds something else."""
    manifest = {
        "model": os.path.realpath(job.model_path),
        "outputs": list(job.outputs),
        "format": job.file_format,
        "with_images": job.with_images,
        "input": os.path.realpath(job.input),
        "shards": len(sources),
        "digest": hashlib.sha256(
            "\n".join(f"{_identity(source)}" for source in sources).encode()
        ).hexdigest()[:16],
    }
    path = pathlib.Path(job.output) / MANIFEST_FILE
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        others = [name for name in os.listdir(job.output) if not name.startswith(".")]
        if others:
            raise UserError(
                f"{job.output}: is not empty ({others[0]}); choose a new folder"
            ) from None
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        os.replace(partial, path)
        return
    except ValueError:
        raise UserError(f"{path}: is damaged; choose a new folder") from None
    differing = [key for key in manifest if there.get(key) != manifest[key]]
    if differing:
        key = differing[0]
        raise UserError(
            f"{job.output}: holds the output of another inference ({key}: {there.get(key)!r}, "
            f"now {manifest[key]!r}); choose a new folder"
        )


def _identity(source: inference.Source) -> str:
    """What a shard holds, so that a changed input is noticed."""
    if isinstance(source, PictureSource):
        return repr((source.paths, source.invert))
    stop = getattr(source, "stop", None)
    stat = os.stat(source.name)
    return repr((source.name, source.start, stop, stat.st_size, stat.st_mtime_ns))
