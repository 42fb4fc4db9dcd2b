"""The ``mnist-ae`` commands around a pushed model.

:func:`register` adds them to a parser; nothing but argparse is imported until
one runs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pathlib

    from serving.client import ReconstructionClient
    from serving.images import Loaded

_SHEET_LIMIT = 64
# Below the root; pipeline.continuous.samples gathers what is there.
SAMPLES = "samples"


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Adds the serving commands; each sets ``run``, called with the parsed arguments.

    Args:
      subparsers: Of the main parser.
    """
    _register_serve(subparsers)
    _register_image_commands(subparsers)
    _register_decode(subparsers)
    _register_generate(subparsers)
    _register_status(subparsers)
    _register_rollout(subparsers)


# Arguments.


def _register_serve(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="serve a pushed model over gRPC and REST",
        description="Serves a model until SIGTERM or Ctrl-C, and says `ready` when it answers.",
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL_OR_FOLDER",
        help="a pushed model's name, or any folder with numbered SavedModel versions; "
        "default: the most recently pushed model",
    )  # fmt: skip
    _add_root(parser)
    parser.add_argument("--port", type=_port, default=8500, help="gRPC port (%(default)s)")
    parser.add_argument("--rest-port", type=_port, default=8501, help="REST port (%(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen on (%(default)s; 0.0.0.0 for the whole network)",
    )  # fmt: skip
    parser.add_argument(
        "--backend", choices=("auto", "docker", "binary", "embedded"), default="auto",
        help="who serves; auto: tensorflow_model_server on the PATH, else Docker, else embedded",
    )  # fmt: skip
    parser.add_argument(
        "--batching", metavar="FILE",
        help="gather small requests, with TensorFlow Serving's batching parameters file",
    )  # fmt: skip
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate chain of the server, PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key, PEM")
    parser.add_argument(
        "--tls-client-ca", metavar="FILE", help="let in only clients with a certificate of this CA"
    )
    parser.add_argument(
        "--max-message-mb", type=_positive_int, default=64,
        help="largest request taken, in MiB (%(default)s; embedded)",
    )  # fmt: skip
    parser.add_argument(
        "--drain-seconds", type=_positive_float, default=30.0,
        help="time for requests under way when stopping (%(default)s; embedded)",
    )  # fmt: skip
    parser.add_argument(
        "--load-retries", type=int, choices=range(10), default=2, metavar="N",
        help="further tries after a failed load, a second apart (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--sample-rate", type=_rate, default=0.0, metavar="PART",
        help="keep this part of the requests' images for retraining, 0 to 1 (0: none; embedded)",
    )  # fmt: skip
    parser.add_argument(
        "--sample-dir", metavar="DIR", help="where they go (<root>/samples, where `watch` looks)"
    )
    parser.add_argument(
        "--sample-max-mb", type=_positive_int, default=64,
        help="size of that folder beyond which nothing is kept, in MiB (%(default)s)",
    )  # fmt: skip
    parser.set_defaults(run=_serve)


def _register_image_commands(subparsers: Any) -> None:
    commands: tuple[tuple[str, str, Callable[[argparse.Namespace], int]], ...] = (
        ("predict", "reconstruct images; writes original and reconstruction side by side",
         _predict),
        ("encode", "print or write the codes of images", _encode),
        ("score", "print the reconstruction error of images and whether they are anomalies",
         _score),
        ("classify", "say which digits images show, for models that can", _classify),
    )  # fmt: skip
    for name, text, run in commands:
        parser = subparsers.add_parser(name, help=text, description=text.capitalize() + ".")
        parser.add_argument(
            "images", nargs="+", metavar="IMAGE", help="PNG, JPEG or IDX file (IDX may be gzipped)"
        )
        parser.add_argument(
            "--invert", choices=("auto", "yes", "no"), default="auto",
            help="swap light and dark; auto: where the border is light (%(default)s)",
        )  # fmt: skip
        if name == "predict":
            parser.add_argument("--out", metavar="DIR", help="where the PNGs go; none by default")
        if name == "encode":
            parser.add_argument("--out", metavar="FILE.npy", help="write here instead of printing")
        _add_model(parser)
        parser.set_defaults(run=run)


def _register_decode(subparsers: Any) -> None:
    text = "turn codes back into images"
    parser = subparsers.add_parser("decode", help=text, description=text.capitalize() + ".")
    parser.add_argument(
        "codes", metavar="CODES", help=".npy as `encode --out` writes, or JSON lists"
    )
    parser.add_argument("--digit", type=int, help="the digit, where the decoder needs one")
    parser.add_argument("--out", metavar="DIR", default="out", help="where the PNG goes")
    _add_model(parser)
    parser.set_defaults(run=_decode)


def _register_generate(subparsers: Any) -> None:
    text = "draw new images, for models that can"
    parser = subparsers.add_parser("generate", help=text, description=text.capitalize() + ".")
    parser.add_argument("--n", type=_positive_int, default=16, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same images for the same seed")
    parser.add_argument("--out", metavar="DIR", default="out", help="where the PNG goes")
    _add_model(parser)
    parser.set_defaults(run=_generate)


def _register_status(subparsers: Any) -> None:
    text = "show the versions of a model, on a server or in its folder"
    parser = subparsers.add_parser("status", help=text, description=text.capitalize() + ".")
    _add_model(parser)
    parser.set_defaults(run=_status)


def _register_rollout(subparsers: Any) -> None:
    text = "move the version labels stable and canary"
    parser = subparsers.add_parser("rollout", help=text, description=text.capitalize() + ".")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    canary = actions.add_parser("canary", help="load a version beside the stable one")
    canary.add_argument("version", type=int, metavar="VERSION")
    promote = actions.add_parser("promote", help="make the canary the stable version")
    rollback = actions.add_parser(
        "rollback", help="withdraw the canary, or return to the previous version"
    )
    listing = actions.add_parser("list", help="show versions, labels and states")
    for action in (canary, promote, rollback, listing):
        _add_root(action)
        action.add_argument("--model", metavar="MODEL_OR_FOLDER", help="default: the latest pushed")
        action.add_argument("--target", metavar="HOST:PORT", help="a live server's gRPC port")
        action.add_argument(
            "--config", metavar="FILE", help="default: <root>/serving/models.config"
        )
        action.add_argument(
            "--base-path", metavar="PATH",
            help="the model's folder as the server sees it (in a container)",
        )  # fmt: skip
        action.add_argument(
            "--keep", type=_positive_int, default=3, help="versions that stay loaded (%(default)s)"
        )
        action.add_argument(
            "--timeout", type=_positive_float, default=60.0,
            help="seconds for a version to become available (%(default)s)",
        )  # fmt: skip
        action.set_defaults(run=_rollout)


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root", metavar="DIR", help="where pushed models are (MNIST_AE_ROOT, else runs)"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    parser.add_argument(
        "--model", metavar="MODEL_OR_FOLDER", help="default: the most recently pushed model"
    )
    parser.add_argument(
        "--target", metavar="HOST:PORT",
        help="ask a running server; without it the pushed folder is used directly",
    )  # fmt: skip
    parser.add_argument("--rest", action="store_true", help="the target is a REST port")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--version", type=int, help="a version number; default: the latest")
    choice.add_argument("--label", help="a version label of the server, such as stable")
    parser.add_argument(
        "--timeout", type=_positive_float, default=10.0, help="seconds for a request (%(default)s)"
    )
    parser.add_argument("--tls-ca", metavar="FILE", help="CA of the server's certificate, PEM")
    parser.add_argument("--tls-cert", metavar="FILE", help="the client's certificate, PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key, PEM")


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"{text} is not a port (0 to 65535)")
    return number


def _rate(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def _positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _positive_float(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


# Commands.


def _serve(args: argparse.Namespace) -> int:
    import logging
    import pathlib

    from serving import launcher, locate
    from serving.errors import InputError

    root = locate.root_folder(args.root, os.environ)
    folder = locate.find(args.model, root)
    config = locate.config_path(root)
    pushed_here = folder.path.parent == config.absolute().parent
    options: dict[str, Any] = {
        "max_message_bytes": args.max_message_mb * 2**20,
        "drain_timeout": args.drain_seconds,
        "max_load_retries": args.load_retries,
    }
    if bool(args.tls_cert) != bool(args.tls_key) or (args.tls_client_ca and not args.tls_cert):
        raise InputError("TLS needs --tls-cert and --tls-key together")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    _quieten()
    if args.tls_cert:
        from serving.server.options import TlsFiles

        options["tls"] = TlsFiles(args.tls_cert, args.tls_key, args.tls_client_ca)
    if args.sample_rate:
        from serving.server.sampling import SamplingOptions

        options["sampling"] = SamplingOptions(
            args.sample_dir or str(root / SAMPLES), args.sample_rate, args.sample_max_mb * 2**20
        )
    plan = launcher.Plan(
        folder,
        config if pushed_here and folder.version is None else None,
        args.host,
        args.port,
        args.rest_port,
        pathlib.Path(args.batching) if args.batching else None,
        options,
    )
    return launcher.serve(plan, args.backend, lambda text: print(text, flush=True))


def _connect(args: argparse.Namespace) -> tuple[ReconstructionClient, str]:
    """The client that the arguments ask for, and the model's name."""
    from serving import locate
    from serving.client import ReconstructionClient, Tls
    from serving.errors import InputError

    root = locate.root_folder(args.root, os.environ)
    if args.target is None:
        if args.label or args.rest:
            raise InputError("--label and --rest need a server; give --target HOST:PORT")
        folder = locate.find(args.model, root)
        version = folder.latest if args.version is None else args.version
        path = folder.version_path(version)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        _quieten()
        client = ReconstructionClient.from_folder(str(path), model=folder.name, version=version)
        return client, folder.name
    name = args.model
    if name is None:
        models = locate.pushed_models(root)
        if not models:
            raise InputError("which model of the server? give --model NAME")
        name = models[-1].name
    elif os.sep in name:
        name = locate.find(name, root).name
    if (args.tls_cert or args.tls_key) and not args.tls_ca:
        raise InputError("--tls-cert and --tls-key need --tls-ca")
    tls = Tls(args.tls_ca, args.tls_cert, args.tls_key) if args.tls_ca else None
    client = ReconstructionClient(
        args.target, model=name, version=args.version, label=args.label,
        timeout=args.timeout, rest=args.rest, tls=tls,
    )  # fmt: skip
    return client, name


def _quieten() -> None:
    """Keeps libraries' chatter away from what people read."""
    import logging
    import warnings

    warnings.simplefilter("ignore", FutureWarning)
    for noisy in ("tensorflow", "absl"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _load_all(args: argparse.Namespace) -> list[Loaded]:
    """All images first: a bad one stops before anything is sent or written."""
    from serving import images

    return [images.load(path, args.invert) for path in args.images]


def _names(loaded: Loaded) -> list[str]:
    """A name for each image of a file: the file's, numbered if it holds several."""
    count = len(loaded.images)
    if count == 1:
        return [str(loaded.path)]
    return [f"{loaded.path}[{index}]" for index in range(count)]


def _predict(args: argparse.Namespace) -> int:
    import pathlib

    from serving import images

    files = _load_all(args)
    client, _ = _connect(args)
    with client:
        for number, loaded in enumerate(files):
            answer = client.reconstruct(loaded.images)
            for name, error, anomaly in zip(_names(loaded), answer.error, answer.is_anomaly):
                print(f"{name}: reconstruction error {error:.6f}{_marks(anomaly, loaded)}")
            if args.out:
                path = pathlib.Path(args.out) / _output_name(files, number)
                pairs = zip(loaded.images, images.to_bytes(answer.images))
                rows = [[before, after] for before, after in pairs][:_SHEET_LIMIT]
                images.write_sheet(path, rows)
                cut = f" (the first {_SHEET_LIMIT})" if len(loaded.images) > _SHEET_LIMIT else ""
                print(f"{loaded.path}: wrote {path}{cut}")
    return 0


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


def _encode(args: argparse.Namespace) -> int:
    import json

    import numpy as np

    from serving.errors import InputError

    files = _load_all(args)
    client, _ = _connect(args)
    with client:
        codes = [client.encode(loaded.images) for loaded in files]
    if not args.out:
        for loaded, rows in zip(files, codes):
            for name, row in zip(_names(loaded), rows):
                print(json.dumps({"image": name, "code": [round(float(v), 7) for v in row]}))
        return 0
    try:
        with open(args.out, "wb") as file:
            np.save(file, np.concatenate(codes))
    except OSError as error:
        raise InputError(f"cannot write {args.out}: {error.strerror}") from None
    print(f"wrote {sum(map(len, codes))} codes to {args.out}")
    return 0


def _score(args: argparse.Namespace) -> int:
    files = _load_all(args)
    client, _ = _connect(args)
    with client:
        for loaded in files:
            answer = client.score(loaded.images)
            for name, error, anomaly in zip(_names(loaded), answer.error, answer.is_anomaly):
                print(f"{name}: {error:.6f}{_marks(anomaly, loaded)}")
    return 0


def _classify(args: argparse.Namespace) -> int:
    files = _load_all(args)
    client, _ = _connect(args)
    with client:
        for loaded in files:
            answer = client.classify(loaded.images)
            for name, label, row in zip(_names(loaded), answer.label, answer.probabilities):
                print(f"{name}: {label} ({row.max():.1%})")
    return 0


def _decode(args: argparse.Namespace) -> int:
    import pathlib

    import numpy as np

    from serving import images

    codes = _read_codes(pathlib.Path(args.codes))
    client, _ = _connect(args)
    with client:
        label = None if args.digit is None else np.full(len(codes), args.digit)
        _write_grid(pathlib.Path(args.out) / "decoded.png", images.to_bytes(
            client.decode(codes, label)))  # fmt: skip
    return 0


def _read_codes(path: pathlib.Path) -> Any:
    import json

    import numpy as np

    from serving.errors import InputError

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


def _generate(args: argparse.Namespace) -> int:
    import pathlib

    from serving import images

    client, _ = _connect(args)
    with client:
        drawn = client.generate(args.n, seed=args.seed)
    _write_grid(pathlib.Path(args.out) / "generated.png", images.to_bytes(drawn))
    return 0


def _write_grid(path: pathlib.Path, drawn: Any) -> None:
    import math

    from serving import images

    columns = max(1, math.ceil(math.sqrt(len(drawn))))
    rows = [list(drawn[start : start + columns]) for start in range(0, len(drawn), columns)]
    images.write_sheet(path, rows)
    print(f"wrote {len(drawn)} images to {path}")


def _status(args: argparse.Namespace) -> int:
    from serving import locate

    if args.target is None:
        folder = locate.find(args.model, locate.root_folder(args.root, os.environ))
        print(f"{folder.name} in {folder.path}")
        for version in reversed(folder.versions):
            print(f"  version {version}")
        return 0
    client, name = _connect(args)
    with client:
        found = client.status()
    print(f"{name} on {args.target}")
    for item in found:
        print(f"  version {item.version}: {item.state}" + (f" ({item.error})" * bool(item.error)))
    return 0


def _rollout(args: argparse.Namespace) -> int:
    import contextlib
    import pathlib

    from serving import locate
    from serving.rollout import ConfigFile, Rollout

    root = locate.root_folder(args.root, os.environ)
    folder = locate.find(args.model, root)
    config = pathlib.Path(args.config) if args.config else locate.config_path(root)
    if args.config is None and folder.path.parent != config.absolute().parent:
        config = folder.path.parent / locate.CONFIG_FILE
    rollout = Rollout(
        folder, ConfigFile(config), target=args.target, keep=args.keep,
        timeout=args.timeout, base_path=args.base_path,
    )  # fmt: skip
    with contextlib.closing(rollout):
        if args.action == "list":
            return _list_rollout(rollout, folder)
        if args.action == "canary":
            labels = rollout.canary(args.version)
        elif args.action == "promote":
            labels = rollout.promote()
        else:
            labels = rollout.rollback()
    where = f"{args.target} and {config}" if args.target else f"{config}"
    text = ", ".join(f"{label} {version}" for label, version in labels.as_dict().items())
    print(f"{folder.name}: {text} ({where})")
    return 0


def _list_rollout(rollout: Any, folder: Any) -> int:
    states = rollout.states()
    labels = rollout.labels.as_dict() if rollout.labels is not None else {}
    print(f"{folder.name} in {folder.path}")
    for version in sorted({*folder.versions, *states}, reverse=True):
        words = [label for label, number in labels.items() if number == version]
        if version in states:
            words.append(states[version].state)
        print(f"  {version}" + (f"  {', '.join(words)}" if words else ""))
    if not labels:
        print("  no labels yet; begin with `mnist-ae rollout canary VERSION`")
    return 0
