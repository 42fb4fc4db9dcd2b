"""Batch inference: any number of images through a pushed model, on Beam.

The input is cut into shards in a fixed order and every shard becomes one output
file, which appears whole. What a killed inference left is found again by the
names, so that the same command completes it, without an image twice.
"""

from __future__ import annotations

import contextlib
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

from serving import contract, files
from serving import images as image_files
from serving.errors import Error, InputError
from serving.uses import shards as shards_lib
from serving.uses.shards import Batch, Source

# Readers of a folder of Parquet files pass over names that begin so.
MANIFEST_FILE = "_inference.json"
DEFAULT_OUTPUTS = ("code", "reconstruction_error", "is_anomaly")

PICTURES_A_SHARD = 5_000
_LOCK = ".lock"
# How a worker's traceback ends where an input cannot be used.
_BAD_INPUT = re.compile(r"[\w.]*\.(DataError|InputError): ")


class InferenceError(Error):
    """A worker failed for another reason than its input."""


@dataclasses.dataclass(frozen=True)
class PictureSource:
    """Picture files.

    Attributes:
      folder: Where they are; names are given below it.
      paths: Below ``folder``.
      invert: Swaps light and dark, as :func:`serving.images.load` says.
      start: Always 0; every picture has its own name.
    """

    folder: str
    paths: tuple[str, ...]
    invert: image_files.Invert = "auto"
    start: int = 0

    @property
    def name(self) -> str:
        """Where the pictures are."""
        return self.folder

    def batches(self) -> Iterator[Batch]:
        """All pictures, in order."""
        for start in range(0, len(self.paths), shards_lib.CHUNK):
            names = self.paths[start : start + shards_lib.CHUNK]
            loaded = [
                image_files.load(os.path.join(self.folder, name), self.invert).images
                for name in names
            ]
            unknown = np.full(len(names), contract.NO_LABEL)
            yield Batch(np.concatenate(loaded), unknown, names)

    def identity(self) -> str:
        """Which pictures, read in which way."""
        return repr((self.paths, self.invert))


@dataclasses.dataclass(frozen=True)
class InferenceJob:
    """What to infer.

    Attributes:
      sources: Its images, one source a shard.
      file_format: ``parquet`` or ``tfrecord``.
      with_images: Whether the images are written, too.
    """

    input: str
    sources: Sequence[Source]
    output: str
    model_path: str
    outputs: tuple[str, ...] = DEFAULT_OUTPUTS
    file_format: str = shards_lib.PARQUET
    with_images: bool = False


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


def run(job: InferenceJob, beam_args: Sequence[str]) -> Result:
    """Infers what is still to be inferred.

    Raises:
      InputError: Unusable input, an output that the model does not give, or a
        folder with another inference's output, or where one is at work.
      InferenceError: A worker failed for another reason.
    """
    try:
        shards_lib.Predictor(job.model_path, job.outputs)
    except (ValueError, OSError) as e:
        raise InputError(f"{job.model_path}: {e}") from None
    suffix, total = shards_lib.SUFFIXES[job.file_format], len(job.sources)
    width = max(5, len(str(total)))
    names = [f"part-{i:0{width}d}-of-{total:05d}{suffix}" for i in range(total)]
    with _alone(job.output):
        _check_manifest(job)
        present = set(os.listdir(job.output))
        for name in present:
            # What was being written when an earlier inference was killed.
            if name.startswith(".part-"):
                os.remove(os.path.join(job.output, name))
        shards = [
            shards_lib.Shard(
                path=os.path.join(job.output, name),
                source=source,
                outputs=job.outputs,
                with_images=job.with_images,
                file_format=job.file_format,
            )
            for name, source in zip(names, job.sources)
            if name not in present
        ]
        count = _infer(shards, job.model_path, beam_args) if shards else 0
    return Result(job.output, len(names), len(names) - len(shards), count)


@contextlib.contextmanager
def _alone(folder: str) -> Iterator[None]:
    """Makes a folder and keeps other inferences out of it."""
    lock = os.path.join(folder, _LOCK)
    try:
        os.makedirs(folder, exist_ok=True)
        with files.locked(lock, wait=False):
            yield
    except files.LockedError as e:
        raise InputError(f"{folder}: another inference is at work there ({e})") from None
    except OSError as e:
        if e.filename not in (folder, lock):
            raise
        raise InputError(f"{folder}: cannot be written ({e.strerror}); choose another") from None


def _infer(shards: list[shards_lib.Shard], model_path: str, beam_args: Sequence[str]) -> int:
    p = beam.Pipeline(options=PipelineOptions(list(beam_args)))
    counter = beam.metrics.Metrics.counter("inference", "images")

    def count(images: int) -> None:
        counter.inc(images)

    _ = p | beam.Create(shards) | shards_lib.WriteShards(model_path) | "Count" >> beam.Map(count)
    try:
        result = p.run()
        result.wait_until_finish()
    except Exception as e:
        # Beam's runners add where in their graph it was, or a worker's traceback.
        lines = [line for line in str(e).partition(" [while running")[0].splitlines() if line]
        reason = lines[-1] if lines else type(e).__name__
        bad_input = _BAD_INPUT.match(reason)
        kind = InputError if bad_input or isinstance(e, Error) else InferenceError
        reason = _BAD_INPUT.sub("", reason)
        raise kind(f"{reason}; the same command goes on from here") from e
    found = result.metrics().query(beam.metrics.MetricsFilter().with_name("images"))
    return sum(counted.result for counted in found["counters"])


def _check_manifest(job: InferenceJob) -> None:
    """Writes down what the folder holds, or refuses a folder that holds something else."""
    manifest = {
        "model": os.path.realpath(job.model_path),
        "outputs": list(job.outputs),
        "format": job.file_format,
        "with_images": job.with_images,
        "input": os.path.realpath(job.input),
        "shards": len(job.sources),
        "digest": hashlib.sha256(
            "\n".join(source.identity() for source in job.sources).encode()
        ).hexdigest()[:16],
    }
    path = pathlib.Path(job.output) / MANIFEST_FILE
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        others = [name for name in os.listdir(job.output) if not name.startswith(".")]
        if others:
            raise InputError(
                f"{job.output}: is not empty ({others[0]}); choose a new folder"
            ) from None
        files.write_json(path, manifest)
        return
    except ValueError:
        raise InputError(f"{path}: is damaged; choose a new folder") from None
    differing = [key for key in manifest if there.get(key) != manifest[key]]
    if differing:
        key = differing[0]
        raise InputError(
            f"{job.output}: holds the output of another inference ({key}: {there.get(key)!r}, "
            f"now {manifest[key]!r}); choose a new folder"
        )


def file_identity(path: str, start: int, stop: int | None) -> str:
    """A range of a file, with the file's size and time."""
    stat = os.stat(path)
    return repr((path, start, stop, stat.st_size, stat.st_mtime_ns))
