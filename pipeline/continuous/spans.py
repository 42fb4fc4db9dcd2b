"""Spans: numbered folders of new images, each published whole or not at all.

``<root>/spans/span-N/version-V/`` holds IDX files in the canonical names (the
train part and the part set aside for evaluation) and ``manifest.json``, which
is written last: a folder without one is no span. A correction is a higher
version of the same span. ``<root>/spans/golden/version-V/`` is the golden set,
evaluation images only.

Standard library and NumPy only: the watcher looks here at every wake-up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from components.mnist_example_gen import idx
from pipeline.errors import UserError
from serving import files

SPANS = "spans"
GOLDEN = "golden"
MANIFEST = "manifest.json"
# TFX resolves {SPAN} and {VERSION} by number.
PATTERN = "span-{SPAN}/version-{VERSION}"
DEFAULT_EVAL_FRACTION = 0.1
MIN_IMAGES = 3
MAX_MISSING = 1_000

# Folders are called span-N and version-V.
_SPAN = "span"
_VERSION = "version"
_STAGING = ".staging-"
_LOCK = ".lock"
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a published span is.

    Attributes:
      span: Its number; -1 for the golden set.
      version: 1, or higher for a correction.
      count: Images in all.
      train: Images to train on.
      eval: Images set aside for evaluation, chosen by their content, so that
        an image is on the same side in every span.
      labelled: Whether there are labels.
      label_counts: Images by digit; empty without labels.
      digest: SHA-256 over the images and labels, whatever their order.
      time: When it was published, ISO 8601 in UTC.
      source: ``kind`` (idx, png, numpy, served) and where it came from.
      format: Of this file.
    """

    span: int
    version: int
    count: int
    train: int
    eval: int
    labelled: bool
    label_counts: tuple[int, ...]
    digest: str
    time: str
    source: dict[str, str]
    format: int = _FORMAT

    @property
    def key(self) -> str:
        """``N.V``: span and version."""
        return f"{self.span}.{self.version}"


@dataclasses.dataclass(frozen=True)
class Published:
    """What :func:`publish` did.

    Attributes:
      manifest: Of the span that holds the images now.
      folder: Where it is.
      duplicate: Whether it was there before; nothing was written then.
    """

    manifest: Manifest
    folder: pathlib.Path
    duplicate: bool


def folder_of(root: files.Path) -> pathlib.Path:
    """The folder of the spans of a root, absolute."""
    return pathlib.Path(os.path.abspath(root)) / SPANS


def version_folder(root: files.Path, span: int, version: int) -> pathlib.Path:
    """The folder of a version of a span, as it is named on the disk."""
    return _place(_place(folder_of(root), _SPAN, span), _VERSION, version)


def scan(root: files.Path) -> list[Manifest]:
    """Every published version of every span, in numeric order."""
    return [
        dataclasses.replace(manifest, span=span, version=version)
        for span, version, folder in _versions(root)
        if (manifest := _read_manifest(folder)) is not None
    ]


def newest_versions(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Of each span the highest version, in numeric order."""
    newest = {m.span: m for m in sorted(manifests, key=lambda m: (m.span, m.version))}
    return [newest[span] for span in sorted(newest)]


def gaps(manifests: Sequence[Manifest]) -> list[tuple[int, int]]:
    """First and last number of each gap between the first span and the last.

    Spans may be numbered by date, so that a gap is millions of numbers wide.
    """
    numbers = sorted({m.span for m in manifests})
    return [(a + 1, b - 1) for a, b in itertools.pairwise(numbers) if b > a + 1]


def missing(manifests: Sequence[Manifest]) -> list[int]:
    """The numbers of the gaps, at most :data:`MAX_MISSING` of them."""
    numbers = itertools.chain.from_iterable(range(a, b + 1) for a, b in gaps(manifests))
    return list(itertools.islice(numbers, MAX_MISSING))


def gap_text(first: int, last: int) -> str:
    """A gap for people, such as ``7`` or ``3-5``."""
    return str(first) if first == last else f"{first}-{last}"


def unpublished(root: files.Path) -> list[pathlib.Path]:
    """Version folders without a readable manifest: half made by another tool, or damaged."""
    return [folder for _, _, folder in _versions(root) if _read_manifest(folder) is None]


def golden(root: files.Path) -> tuple[Manifest, pathlib.Path] | None:
    """The newest version of the golden set and its folder, or None."""
    found = [
        (manifest, folder)
        for _, folder in _numbered(folder_of(root) / GOLDEN, _VERSION)
        if (manifest := _read_manifest(folder)) is not None
    ]
    return found[-1] if found else None


def publish(
    root: files.Path,
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    source: dict[str, str],
    span: int | None = None,
    eval_fraction: float = DEFAULT_EVAL_FRACTION,
) -> Published:
    """Publishes images as a span, or as the next version of one.

    Args:
      images: uint8 [n, 28, 28].
      labels: uint8 [n], or None where unknown.
      source: For the manifest.
      span: Its number; None is one above the highest.
      eval_fraction: Part that is set aside for evaluation.

    Returns:
      The new span, or the one that holds the same images and labels already.

    Raises:
      UserError: Too few images, or the folder cannot be written; nothing is
        published then.
    """
    if len(images) < MIN_IMAGES:
        raise UserError(f"{len(images)} image(s): a span needs at least {MIN_IMAGES}")
    digest = set_digest(image_digests(images, labels))
    with _writing(root) as base:
        for manifest in newest_versions(scan(root)):
            if manifest.digest == digest:
                known_folder = version_folder(root, manifest.span, manifest.version)
                if _is_whole(known_folder, manifest):
                    return Published(manifest, known_folder, True)
                # Its files went bad since: these take their place.
                span = manifest.span if span is None else span
        if span is None:
            span = max((number for number, _ in _numbered(base, _SPAN)), default=0) + 1
        place = _place(base, _SPAN, span)
        version = max((number for number, _ in _numbered(place, _VERSION)), default=0) + 1
        held_out = _held_out(image_digests(images, None), eval_fraction)
        parts = {"train": ~held_out, "eval": held_out}
        return _publish(place, span, version, images, labels, parts, digest, source)


def publish_golden(
    root: files.Path, images: np.ndarray, labels: np.ndarray | None, *, source: dict[str, str]
) -> Published:
    """Publishes the golden set, or a new version of it; see :func:`publish`."""
    if not len(images):
        raise UserError("the golden set needs at least 1 image")
    digest = set_digest(image_digests(images, labels))
    with _writing(root) as base:
        known = golden(root)
        if known is not None and known[0].digest == digest:
            return Published(*known, duplicate=True)
        version = known[0].version + 1 if known is not None else 1
        parts = {"eval": np.ones(len(images), bool)}
        return _publish(base / GOLDEN, -1, version, images, labels, parts, digest, source)


def check(folder: pathlib.Path, manifest: Manifest) -> None:
    """Reads a published version whole and compares it with its manifest.

    Raises:
      idx.DataError: A file is missing, damaged or not what was published.
    """
    images, labels = [], []
    for split, prefix in idx.SPLIT_PREFIXES.items():
        if not getattr(manifest, split):
            continue
        matches = [str(p) for p in sorted(folder.glob(f"{prefix}-*"))]
        found = idx.find_split_files(matches, where=f"{folder} ({prefix}-*)")
        idx.check_split(found)
        images.append(read_images(found.images))
        if found.labels is not None:
            labels.append(read_labels(found.labels))
    if bool(labels) != manifest.labelled:
        raise idx.DataError(f"{folder}: the files of labels do not fit {MANIFEST}")
    digests = image_digests(np.concatenate(images), np.concatenate(labels) if labels else None)
    if set_digest(digests) != manifest.digest:
        raise idx.DataError(
            f"{folder}: not what was published (the digest in {MANIFEST} is "
            f"{manifest.digest[:12]}); ingest it again as a new version"
        )


def _is_whole(folder: pathlib.Path, manifest: Manifest) -> bool:
    try:
        check(folder, manifest)
    except (OSError, idx.DataError):
        return False
    return True


def read_images(path: str) -> np.ndarray:
    """All images of an IDX file, uint8 [n, 28, 28]."""
    if not idx.count_images(path):
        raise idx.DataError(f"{path}: holds no images")
    return np.concatenate(list(idx.read_images(path))).reshape(-1, idx.SIDE, idx.SIDE)


def read_labels(path: str) -> np.ndarray:
    """All labels of an IDX file, uint8 [n]."""
    return np.concatenate([np.zeros(0, np.uint8), *idx.read_labels(path)])


def image_digests(images: np.ndarray, labels: np.ndarray | None) -> list[bytes]:
    """16 bytes an image, of its pixels and its label where there is one."""
    rows = np.ascontiguousarray(images, np.uint8).reshape(len(images), -1)
    salts = [b""] * len(images) if labels is None else [b"%d" % label for label in labels]
    return [
        hashlib.blake2b(row.data, digest_size=16, salt=salt).digest()
        for row, salt in zip(rows, salts)
    ]


def set_digest(digests: Sequence[bytes]) -> str:
    """One digest of a set, whatever the order of its images."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _held_out(digests: Sequence[bytes], fraction: float) -> np.ndarray:
    """Which images are set aside: bool [n], at least one of each kind."""
    position = np.array([int.from_bytes(d[:8], "big") / 2**64 for d in digests])
    chosen = position < fraction
    if not chosen.any():
        chosen[np.argmin(position)] = True
    if chosen.sum() > len(chosen) - 2:
        chosen[:] = False
        chosen[np.argmin(position)] = True
    return chosen


def _publish(
    place: pathlib.Path,
    span: int,
    version: int,
    images: np.ndarray,
    labels: np.ndarray | None,
    parts: dict[str, np.ndarray],
    digest: str,
    source: dict[str, str],
) -> Published:
    """Writes a version beside the spans, then renames: readers see all of it or nothing.

    Args:
      place: The folder of the version's.
      parts: Which images are of a split, bool [n].
    """
    counts = () if labels is None else np.bincount(labels, minlength=idx.MAX_LABEL + 1)
    manifest = Manifest(
        span=span,
        version=version,
        count=len(images),
        train=int(np.sum(parts.get("train", 0))),
        eval=int(np.sum(parts["eval"])),
        labelled=labels is not None,
        label_counts=tuple(int(c) for c in counts),
        digest=digest,
        time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
        source=source,
    )
    base, target = place.parent, place / f"{_VERSION}-{version}"
    staging = base / f"{_STAGING}{uuid.uuid4().hex}"
    staging.mkdir()
    try:
        for split, rows in parts.items():
            prefix = idx.SPLIT_PREFIXES[split]
            _write_idx(staging / f"{prefix}-{idx.IMAGES}", images[rows])
            if labels is not None:
                _write_idx(staging / f"{prefix}-{idx.LABELS}", labels[rows])
        files.write_json(staging / MANIFEST, dataclasses.asdict(manifest))
        place.mkdir(exist_ok=True)
        files.publish(staging, target)
        files.sync_folder(base)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        with contextlib.suppress(OSError):
            place.rmdir()  # only where it is empty
        raise
    return Published(manifest, target, False)


def _write_idx(path: pathlib.Path, values: np.ndarray) -> None:
    idx.write_idx(str(path), values)
    with open(path, "rb") as f:
        os.fsync(f.fileno())


@contextlib.contextmanager
def _writing(root: files.Path) -> Iterator[pathlib.Path]:
    """The folder of the spans, made and locked against other ingestions.

    Raises:
      UserError: What failed inside, where it was the disk's fault.
    """
    base = folder_of(root)
    try:
        base.mkdir(parents=True, exist_ok=True)
        with files.locked(base / _LOCK):
            for name in os.listdir(base):
                if name.startswith(_STAGING):
                    # Left by an ingestion that was killed: the lock keeps others out.
                    shutil.rmtree(base / name, ignore_errors=True)
            yield base
    except OSError as e:
        raise UserError(
            f"{base}: the span cannot be written ({e.strerror}); nothing was published"
        ) from None


def _versions(root: files.Path) -> Iterator[tuple[int, int, pathlib.Path]]:
    """Number, version and folder of all versions, published or not, in numeric order."""
    for span, place in _numbered(folder_of(root), _SPAN):
        for version, folder in _numbered(place, _VERSION):
            yield span, version, folder


def _numbered(folder: pathlib.Path, kind: str) -> list[tuple[int, pathlib.Path]]:
    """The children that are called ``kind-N``, in numeric order."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = (re.fullmatch(rf"{kind}-(\d+)", name) for name in names)
    return sorted((int(match[1]), folder / match[0]) for match in found if match)


def _place(folder: pathlib.Path, kind: str, number: int) -> pathlib.Path:
    """The child of that number, as it is called on the disk, where it is there."""
    there = (path for found, path in _numbered(folder, kind) if found == number)
    return next(there, folder / f"{kind}-{number}")


def _read_manifest(folder: pathlib.Path) -> Manifest | None:
    try:
        values: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        known = {field.name for field in dataclasses.fields(Manifest)}
        values = {key: value for key, value in values.items() if key in known}
        values["label_counts"] = tuple(values["label_counts"])
        return Manifest(**values)
    except (OSError, ValueError, TypeError, KeyError):
        return None
