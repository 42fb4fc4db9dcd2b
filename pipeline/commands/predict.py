"""The commands that put images or codes through a model."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands import options
from pipeline.commands.connection import asked, asked_about_images
from pipeline.commands.group import command
from pipeline.commands.options import COUNT, option
from pipeline.output_files import writing
from serving.errors import InputError

if TYPE_CHECKING:
    from serving.client import ReconstructionClient
    from serving.images import Loaded

    Connection = contextlib.AbstractContextManager[ReconstructionClient]

_SHEET_LIMIT = 64


@command()
@options.images
@option("--out DIR", "where the PNGs go; none are written without it")
@asked_about_images
def predict(files: list[Loaded], out: str | None, connection: Connection) -> None:
    """Reconstruct images; writes original and reconstruction side by side.

    Errors are the mean of squares over pixels in [0, 1].
    """
    import numpy as np

    from serving import images

    with connection as client:
        for number, loaded in enumerate(files):
            answer = client.reconstruct(loaded.images)
            for name, error, anomaly in zip(loaded.names, answer.error, answer.is_anomaly):
                print(f"{name}: reconstruction error {error:.6f}{_marks(anomaly, loaded)}")
            if out:
                path = pathlib.Path(out) / _output_name(files, number)
                pairs = np.stack([loaded.images, images.to_bytes(answer.images)], axis=1)
                images.write_sheet(path, pairs[:_SHEET_LIMIT], columns=2)
                cut = f" (the first {_SHEET_LIMIT})" if len(loaded.images) > _SHEET_LIMIT else ""
                print(f"{loaded.path}: wrote {path}{cut}")


@command()
@options.images
@option("--out FILE.npy", "write here instead of printing")
@asked_about_images
def encode(files: list[Loaded], out: str | None, connection: Connection) -> None:
    """Print or write the codes of images."""
    import numpy as np

    with connection as client:
        codes = [client.encode(loaded.images) for loaded in files]
    if not out:
        for loaded, rows in zip(files, codes):
            for name, row in zip(loaded.names, rows):
                print(json.dumps({"image": name, "code": [round(float(v), 7) for v in row]}))
        return
    with writing(out) as file:
        np.save(file, np.concatenate(codes))
    print(f"wrote {sum(map(len, codes))} codes to {out}")


@command()
@options.images
@asked_about_images
def score(files: list[Loaded], connection: Connection) -> None:
    """Print the reconstruction error of images and whether they are anomalies.

    Errors are the mean of squares over pixels in [0, 1].
    """
    for loaded, name, error, anomaly in _answers(files, connection, "score"):
        print(f"{name}: {error:.6f}{_marks(anomaly, loaded)}")


@command()
@options.images
@asked_about_images
def classify(files: list[Loaded], connection: Connection) -> None:
    """Say which digits images show, for models that can."""
    for _, name, row, label in _answers(files, connection, "classify"):
        print(f"{name}: {label} ({row.max():.1%})")


@command()
@click.argument("codes", metavar="CODES")
@option("--digit", "the digit, where the decoder needs one", type=int)
@option("--out DIR", "where the PNG goes", default="out")
@asked
def decode(codes: str, digit: int | None, out: str, connection: Connection) -> None:
    """Turn codes back into images.

    CODES is a .npy file as `encode --out` writes, or JSON lists.
    """
    import numpy as np

    from serving import images

    array = _read_codes(pathlib.Path(codes))
    with connection as client:
        label = None if digit is None else np.full(len(array), digit)
        drawn = images.to_bytes(client.decode(array, label))
    _write(pathlib.Path(out) / "decoded.png", drawn)


@command()
@option("--n", "images to draw", type=COUNT, default=16)
@option("--seed", "the same images for the same seed", type=int, default=0)
@option("--out DIR", "where the PNG goes", default="out")
@asked
def generate(n: int, seed: int, out: str, connection: Connection) -> None:
    """Draw new images, for models that can."""
    from serving import images

    with connection as client:
        drawn = images.to_bytes(client.generate(n, seed=seed))
    _write(pathlib.Path(out) / "generated.png", drawn)


def _answers(files: list[Loaded], connection: Connection, method: str) -> Iterator[tuple[Any, ...]]:
    """Of each image its file, its name and what a method of the client says of it."""
    with connection as client:
        for loaded in files:
            for name, *answer in zip(loaded.names, *getattr(client, method)(loaded.images)):
                yield loaded, name, *answer


def _marks(anomaly: bool, loaded: Loaded) -> str:
    return (", anomaly" if anomaly else "") + (", inverted" if loaded.inverted else "")


def _output_name(files: list[Loaded], number: int) -> str:
    """``<stem>_reconstruction.png``, told apart where two inputs share a stem."""
    stem = _stem(files[number].path)
    same = [index for index, other in enumerate(files) if _stem(other.path) == stem]
    suffix = f"_{same.index(number) + 1}" if len(same) > 1 else ""
    return f"{stem}{suffix}_reconstruction.png"


def _stem(path: pathlib.Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0] or path.name


def _read_codes(path: pathlib.Path) -> Any:
    """Codes float32 [n, code size] of a file.

    Raises:
      InputError: There is none, or it holds no codes.
    """
    import numpy as np

    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    try:
        if data.startswith(b"\x93NUMPY"):
            codes = np.load(path, allow_pickle=False)
        else:
            codes = np.array(json.loads(data))
    except (ValueError, RecursionError, EOFError) as error:
        raise InputError(f"{path} holds no codes: {' '.join(str(error).split())}") from None
    if codes.ndim == 1:
        codes = codes[None]
    if codes.ndim != 2 or codes.dtype.kind not in "fiu" or not codes.size:
        raise InputError(
            f"{path} must hold numbers of the shape [n, code size], not {list(codes.shape)}"
        )
    return codes.astype(np.float32)


def _write(path: pathlib.Path, drawn: Any) -> None:
    from serving import images

    images.write_grid(path, drawn)
    print(f"wrote {len(drawn)} images to {path}")
