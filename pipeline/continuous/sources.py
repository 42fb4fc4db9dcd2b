"""What can be ingested: IDX files, folders of PNGs, NumPy arrays; checked whole."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import zipfile

import numpy as np

from components.mnist_example_gen import idx
from pipeline.continuous import spans
from pipeline.errors import UserError

_IMAGE_KEYS = ("images", "x")
_LABEL_KEYS = ("labels", "y")


def read(path: str, labels: str | None = None) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Reads images and, where they are known, labels.

    Args:
      path: An IDX file (plain or gzip) of images, ``.npy``, ``.npz`` with
        ``images`` and perhaps ``labels``, or a folder: of IDX files, of PNGs,
        or of folders ``0`` to ``9`` of PNGs.
      labels: An IDX file or ``.npy`` with as many labels, or None.

    Returns:
      Images uint8 [n, 28, 28], labels uint8 [n] or None, and the kind: ``idx``,
      ``png`` or ``numpy``.

    Raises:
      UserError, idx.DataError: Nothing usable; the message says which file and why.
    """
    try:
        if os.path.isdir(path):
            images, found, kind = _read_folder(pathlib.Path(path))
        elif _is_numpy(path):
            (images, found), kind = _read_numpy(path), "numpy"
        else:
            images, found, kind = spans.read_images(path), None, "idx"
        if labels is not None:
            found = _read_labels(labels)
    except OSError as e:
        raise UserError(f"{e.filename or path}: cannot be read ({e.strerror or e})") from None
    if found is not None:
        if len(found) != len(images):
            raise UserError(
                f"{labels or path}: {len(found):,} labels for {len(images):,} images of {path}"
            )
        found = _checked_labels(found, labels or path)
    return images, found, kind


def _is_numpy(path: str) -> bool:
    with open(path, "rb") as f:
        magic = f.read(6)
    return magic == b"\x93NUMPY" or magic[:4] == b"PK\x03\x04"


def _load(path: str) -> np.ndarray | dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as e:
        raise UserError(f"{path}: not a usable NumPy file ({' '.join(str(e).split())})") from None


def _read_numpy(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        return _checked_images(loaded, path), None
    labels = next((loaded[key] for key in _LABEL_KEYS if key in loaded), None)
    return _checked_images(_array(loaded, _IMAGE_KEYS, path), path), labels


def _array(loaded: dict[str, np.ndarray], keys: tuple[str, ...], path: str) -> np.ndarray:
    """The array of a .npz under the first of the keys that it has."""
    for key in keys:
        if key in loaded:
            return loaded[key]
    raise UserError(f"{path}: no array {keys[0]!r}; it has {', '.join(loaded) or 'none'}")


def _checked_images(images: np.ndarray, path: str) -> np.ndarray:
    shape = images.shape
    if images.ndim == 4 and shape[-1] == 1:
        images = images[..., 0]
    if images.ndim == 2 and images.shape[1] == idx.PIXELS:
        images = images.reshape(-1, idx.SIDE, idx.SIDE)
    if images.ndim != 3 or images.shape[1:] != (idx.SIDE, idx.SIDE):
        raise UserError(
            f"{path}: an array of shape {list(shape)}; images are [n, {idx.SIDE}, {idx.SIDE}]"
        )
    kind = images.dtype.kind
    if kind not in "fiu":
        raise UserError(f"{path}: an array of {images.dtype}; grey levels are numbers")
    top, numbers = (1, "floating-point") if kind == "f" else (255, "integer")
    # Not so either where one is no number.
    if images.size and not 0 <= images.min() <= images.max() <= top:
        raise UserError(f"{path}: {numbers} grey levels are between 0 and {top}")
    return np.rint(images * 255).astype(np.uint8) if kind == "f" else images.astype(np.uint8)


def _read_labels(path: str) -> np.ndarray:
    if not _is_numpy(path):
        return spans.read_labels(path)
    loaded = _load(path)
    return _array(loaded, _LABEL_KEYS, path) if isinstance(loaded, dict) else loaded


def _checked_labels(labels: np.ndarray, path: str) -> np.ndarray:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        shape = list(labels.shape)
        raise UserError(f"{path}: labels are whole numbers [n], not {labels.dtype} {shape}")
    bad = np.flatnonzero((labels < 0) | (labels > idx.MAX_LABEL))
    if len(bad):
        raise UserError(
            f"{path}: label {labels[bad[0]]} at position {bad[0]}; labels are digits 0 to "
            f"{idx.MAX_LABEL}"
        )
    return labels.astype(np.uint8)


def _read_folder(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray | None, str]:
    names = sorted(os.listdir(folder))
    if any(name.removesuffix(".gz").endswith(idx.IMAGES) for name in names):
        return (*_read_idx_folder(folder, names), "idx")
    files = [folder / name for name in names if _is_picture(name)]
    by_digit = [
        (int(name), folder / name / picture)
        for name in names
        if name.isdigit() and len(name) == 1 and (folder / name).is_dir()
        for picture in sorted(os.listdir(folder / name))
        if _is_picture(picture)
    ]
    if files and by_digit:
        raise UserError(f"{folder}: PNGs beside folders of PNGs; one or the other")
    if not files and not by_digit:
        raise UserError(
            f"{folder}: neither IDX files (*-{idx.IMAGES}[.gz]) nor PNGs nor folders 0 to 9 of PNGs"
        )
    labels = np.array([digit for digit, _ in by_digit], np.uint8) if by_digit else None
    with concurrent.futures.ThreadPoolExecutor() as pool:
        images = list(pool.map(_read_picture, files or [path for _, path in by_digit]))
    return np.stack(images), labels, "png"


def _read_idx_folder(
    folder: pathlib.Path, names: list[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    images, labels = [], []
    prefixes = sorted({n.split(idx.IMAGES)[0] for n in names if idx.IMAGES in n})
    for prefix in prefixes:
        matches = [str(folder / n) for n in names if n.startswith(prefix)]
        files = idx.find_split_files(matches, where=f"{folder} ({prefix}*)")
        idx.check_split(files)
        images.append(spans.read_images(files.images))
        if files.labels is not None:
            labels.append(spans.read_labels(files.labels))
    if labels and len(labels) != len(images):
        raise UserError(f"{folder}: some files of images have labels and some have none")
    return np.concatenate(images), np.concatenate(labels) if labels else None


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(".png")


def _read_picture(path: pathlib.Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.size != (idx.SIDE, idx.SIDE):
                raise UserError(
                    f"{path}: {picture.width}x{picture.height} pixels; only "
                    f"{idx.SIDE}x{idx.SIDE} is ingested"
                )
            return np.asarray(picture.convert("L"), np.uint8)
    except (OSError, SyntaxError, ValueError) as e:
        raise UserError(f"{path}: not a readable picture ({' '.join(str(e).split())})") from None
