"""Starts a server for pushed models: TensorFlow Serving where there is one.

``auto`` takes a ``tensorflow_model_server`` on the PATH, else Docker with
``tensorflow/serving``, else the embedded server, and says which and why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.metadata
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from serving import contract, locate
from serving.errors import InputError, ServerStartError, ServingError

if TYPE_CHECKING:
    from serving.standin.settings import ModelSettings

BACKENDS = ("auto", "binary", "docker", "embedded")
BINARY = "tensorflow_model_server"
_DOCKER_PATIENCE = 10.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What ``mnist-ae serve`` was asked for.

    Attributes:
      folder: The model.
      config_file: Where the rollout state is or will be; None to ignore it.
      host: The address to bind (embedded and Docker).
      port: gRPC.
      rest_port: REST.
      batching_file: TensorFlow Serving's batching parameters, or None; not for
        the embedded server.
      options: The embedded server's other options.
      timeout: Seconds to wait for the model.
    """

    folder: locate.ModelFolder
    config_file: pathlib.Path | None
    host: str
    port: int
    rest_port: int
    batching_file: pathlib.Path | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    timeout: float = 120.0

    def models(self) -> list[tuple[ModelSettings, ModelSettings]]:
        """The models of the rollout's file, as it lists them and in their folders here.

        Raises:
          InputError: It is no sound model configuration.
        """
        from serving.rollout import ConfigFile
        from serving.standin.settings import located, models_of
        from serving.standin.status import StatusError

        if self.config_file is None:
            return []
        try:
            listed = models_of(ConfigFile(self.config_file).read())
        except StatusError as error:
            raise InputError(f"{self.config_file}: {error.message}") from None
        folder = str(self.config_file.absolute().parent)
        return [(model, located(model, folder)) for model in listed.values()]


def choose(wanted: str) -> tuple[str, str]:
    """Which backend to use.

    Args:
      wanted: One of :data:`BACKENDS`.

    Returns:
      The backend, and why.

    Raises:
      ServerStartError: The one wanted is not there.
    """
    if wanted == "embedded":
        return "embedded", "as asked"
    binary = shutil.which(BINARY)
    if wanted == "binary" or (wanted == "auto" and binary):
        if not binary:
            raise ServerStartError(
                f"no {BINARY} on the PATH; install it, or use --backend embedded"
            )
        return "binary", f"{binary}"
    why_not = _docker_problem()
    if not why_not:
        return "docker", docker_image()
    if wanted == "docker":
        raise ServerStartError(f"Docker cannot be used: {why_not}; use --backend embedded")
    return "embedded", f"no {BINARY} on the PATH, and {why_not}"


def docker_image() -> str:
    """``tensorflow/serving`` at the version that fits the TensorFlow in use."""
    for package in ("tensorflow-serving-api", "tensorflow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"tensorflow/serving:{importlib.metadata.version(package)}"
    return "tensorflow/serving:latest"


def _docker_problem() -> str:
    """Why ``docker run`` would not work, empty when it would; fetches the image."""
    if not shutil.which("docker"):
        return "Docker is not installed"

    def docker(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        return subprocess.run(["docker", *arguments], check=False, **options)

    try:
        done = docker("info", "--format", "{{.ServerVersion}}", timeout=_DOCKER_PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return "Docker does not answer"
    if done.returncode or not done.stdout.strip():
        return "Docker does not answer"
    image = docker_image()
    if docker("image", "inspect", image).returncode == 0:
        return ""
    # Its progress is for who waits; why it failed is told in our own line.
    pulled = docker("pull", image, stdout=sys.stderr)
    if pulled.returncode == 0:
        return ""
    reason = (pulled.stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"{image} cannot be pulled ({reason})"


def serve(plan: Plan, backend: str, say: Callable[[str], None] = print) -> int:
    """Serves until SIGTERM or SIGINT.

    Args:
      plan: What to serve and where.
      backend: One of :data:`BACKENDS`.
      say: Where the few lines for people go.

    Returns:
      0 after an orderly end.

    Raises:
      ServingError: It did not come up.
    """
    chosen, why = choose(backend)
    if chosen == "embedded":
        say(f"backend: embedded server ({why})")
        return _serve_embedded(plan, say)
    if plan.options.get("tls") is not None:
        raise InputError(f"--tls-... is for the embedded server; {chosen} has --ssl_config_file")
    if not plan.port or not plan.rest_port:
        raise InputError("port 0 (any free one) is for the embedded server; name the ports")
    say(f"backend: {'TensorFlow Serving' if chosen == 'binary' else 'Docker'} ({why})")
    plan = _listed(plan, chosen, say)
    if chosen == "binary" and plan.host == "127.0.0.1":
        say(f"note: {BINARY} has no flag for the address and listens on all of them")
    command = binary_command(plan) if chosen == "binary" else docker_command(plan)
    return _serve_process(command, plan, say)


def binary_command(plan: Plan) -> list[str]:
    """The command line of ``tensorflow_model_server``."""
    return [BINARY, *_flags(plan, plan.port, plan.rest_port)]


def docker_command(plan: Plan) -> list[str]:
    """The command line of ``docker run``; folders have the paths inside that the file says."""
    mounts = {str(plan.folder.path): str(plan.folder.path)}
    if plan.config_file is not None:
        folder = str(plan.config_file.absolute().parent)
        mounts = {folder: folder, **_paths_inside(plan)}
    if plan.batching_file is not None:
        mounts[str(plan.batching_file.absolute())] = str(plan.batching_file.absolute())
    volumes = [f"--volume={path}:{inside}:ro" for inside, path in sorted(mounts.items())]
    ports = [f"{plan.host}:{plan.port}:8500", f"{plan.host}:{plan.rest_port}:8501"]
    run = ["docker", "run", "--rm", "--init", *(f"--publish={port}" for port in ports), *volumes]
    return [*run, "--entrypoint", BINARY, docker_image(), *_flags(plan, 8500, 8501)]


def _paths_inside(plan: Plan) -> dict[str, str]:
    """Folder of each listed model by the path that the file has for it."""
    return {listed.base_path: here.base_path for listed, here in plan.models()}


def _listed(plan: Plan, backend: str, say: Callable[[str], None]) -> Plan:
    """The plan with a file that lists its model: TensorFlow Serving reads it only if it began so.

    Raises:
      InputError: A listed model is not there; TensorFlow Serving would not listen.
    """
    from serving.rollout import ConfigFile, RolloutError, ensure_listed

    if plan.config_file is None:
        return plan
    try:
        ensure_listed(plan.folder, ConfigFile(plan.config_file))
    except RolloutError as error:
        if plan.config_file.exists():
            raise
        say(f"note: {error}; no rollout will reach this server")
        return dataclasses.replace(plan, config_file=None)
    for inside, path in _paths_inside(plan).items():
        if not os.path.isdir(inside if backend == "binary" else path):
            raise InputError(
                f"{plan.config_file}: {inside} is not here; correct the file, or order a rollout "
                "with --base-path"
            )
    return plan


def _flags(plan: Plan, port: int, rest_port: int) -> list[str]:
    """TensorFlow Serving's flags.

    They mend what people trip over: loads in their own threads, a failed load
    tried again soon, enough gRPC threads (docs/serving.md).
    """
    if plan.config_file is not None:
        models = [
            f"--model_config_file={plan.config_file.absolute()}",
            "--model_config_file_poll_wait_seconds=1",
            "--allow_version_labels_for_unavailable_models=true",
        ]
    else:
        models = [f"--model_name={plan.folder.name}", f"--model_base_path={plan.folder.path}"]
    if plan.batching_file is not None:
        file = plan.batching_file.absolute()
        models += ["--enable_batching=true", f"--batching_parameters_file={file}"]
    return [
        f"--port={port}",
        f"--rest_api_port={rest_port}",
        *models,
        "--num_load_threads=2",
        f"--max_num_load_retries={plan.options.get('max_load_retries', 2)}",
        "--load_retry_interval_micros=1000000",
        "--grpc_max_threads=64",
        "--enable_grpc_healthcheck_service=true",
    ]


def settings_of(plan: Plan) -> dict[str, ModelSettings]:
    """The models that the embedded server is to serve.

    Those of the rollout's file, and the one asked for. A listed model whose
    folder is gone is left out with a word on stderr.
    """
    from serving.standin.settings import ModelSettings

    folder = plan.folder
    models = {here.name: here for _, here in plan.models()}
    for name in [name for name in models if not os.path.isdir(models[name].base_path)]:
        print(
            f"warning: {plan.config_file} lists {name!r}, whose folder "
            f"{models[name].base_path} is missing; leaving it out",
            file=sys.stderr,
        )
        del models[name]
    if folder.version is not None:
        models[folder.name] = ModelSettings(folder.name, str(folder.path), (folder.version,))
    elif folder.name not in models:
        models[folder.name] = ModelSettings(folder.name, str(folder.path))
    return models


def _serve_embedded(plan: Plan, say: Callable[[str], None]) -> int:
    from serving.standin.server import EmbeddedServer
    from serving.standin.settings import ServerOptions

    if plan.batching_file is not None:
        raise InputError(
            "--batching is for TensorFlow Serving; the embedded server answers each request by "
            "itself (use --backend binary or docker)"
        )
    options = ServerOptions(
        models=settings_of(plan),
        host=plan.host,
        port=plan.port,
        rest_port=plan.rest_port,
        config_file=str(plan.config_file) if plan.config_file is not None else None,
        **plan.options,
    )
    # A connection is an open file; as many as the system permits.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # TensorFlow's many objects stay: looking through them for garbage again and
    # again costs small requests a tenth of their time.
    gc.freeze()
    quit_event = threading.Event()
    server = EmbeddedServer(options)
    # Until it listens there is nothing to drain: a signal just ends the process.
    server.start()
    with on_signals(quit_event.set):
        try:
            versions = server.models.available().get(plan.folder.name, [])
            rest = f"http{'s' * bool(options.tls)}://{server.rest_address}"
            _announce(plan, server.address, rest, versions, f"{rest}/", say)
            quit_event.wait()
            say("stopping: finishing the requests under way")
        finally:
            server.stop()
    say("stopped")
    return 0


@contextlib.contextmanager
def on_signals(act: Callable[[], None]) -> Any:
    """Acts on SIGTERM and SIGINT while the block runs (in the main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, lambda *_: act())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve_process(command: Sequence[str], plan: Plan, say: Callable[[str], None]) -> int:
    from serving.grpc_transport import GrpcTransport
    from serving.transport import Address

    try:
        process = subprocess.Popen(command)
    except OSError as error:
        raise ServerStartError(f"cannot start {command[0]}: {error.strerror}") from None
    stopping = threading.Event()

    def stop() -> None:
        stopping.set()
        process.terminate()

    host = "localhost" if plan.host in ("0.0.0.0", "::") else plan.host
    address = f"{host}:{plan.port}"
    transport = GrpcTransport(Address(address, plan.folder.name, timeout=2.0, retries=0))
    with on_signals(stop), contextlib.closing(transport):
        try:
            versions = _await_process(process, transport, plan, stopping)
            if versions:
                page = f"mnist-ae play --target {address} --model {plan.folder.name}"
                _announce(plan, address, f"http://{host}:{plan.rest_port}", versions, page, say)
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if stopping.is_set():
        say("stopped")
        return 0
    raise ServerStartError(f"{command[0]} ended by itself with code {code}; see its output above")


def _await_process(
    process: subprocess.Popen[bytes], transport: Any, plan: Plan, stopping: threading.Event
) -> list[int]:
    end = time.monotonic() + plan.timeout
    while process.poll() is None and not stopping.is_set():
        with contextlib.suppress(ServingError):
            ready = [item.version for item in transport.status() if item.state == "AVAILABLE"]
            if ready:
                return ready
        if time.monotonic() > end:
            raise ServerStartError(
                f"model {plan.folder.name!r} did not become available within {plan.timeout:g} s; "
                "see the server's output above"
            )
        stopping.wait(0.2)
    return []


def _announce(
    plan: Plan, grpc: str, rest: str, versions: Sequence[int], page: str, say: Callable[[str], None]
) -> None:
    """Says what is served where, and how to try it.

    Args:
      rest: With its scheme.
      page: Where the page is, or what offers it.
    """
    name = plan.folder.name
    numbers = ", ".join(map(str, sorted(versions)))
    say(f"serving {name}, version{'s' if len(versions) > 1 else ''} {numbers}")
    say(f"  gRPC {grpc}")
    say(f"  REST {rest}/v1/models/{name}")
    ours = (plan.folder.version_path(max(plan.folder.versions)) / contract.METADATA_FILE).is_file()
    if ours:
        say(f"  page {page}")
        say(f"try: mnist-ae predict IMAGE --target {grpc} --model {name} --out out/")
    else:
        say(f"try: curl {rest}/v1/models/{name}/metadata")
    say("ready")
