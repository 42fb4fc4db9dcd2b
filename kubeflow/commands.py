"""The ``mnist-ae kubeflow`` commands; ``pipeline.cli`` knows them by name."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands import options
from pipeline.commands.group import Group
from pipeline.commands.options import POSITIVE, Integer, Number, flag, option
from pipeline.errors import UserError

if TYPE_CHECKING:
    from kubeflow.submit import KubeflowClient
    from pipeline.config import PipelineConfig

    Start = Callable[..., str]

_TOKEN = "MNIST_AE_KFP_TOKEN"
_COOKIE = "MNIST_AE_KFP_COOKIE"
_HOST = "MNIST_AE_KFP_HOST"
_EXIT_FAILED = 1
_NOT_NEGATIVE = Number(min=0)


@click.group(cls=Group, subcommand_metavar="ACTION")
def kubeflow() -> None:
    """The same pipeline on Kubeflow Pipelines."""


def _client(
    host: str | None,
    namespace: str | None,
    token_file: str | None,
    cookie_file: str | None,
    ca_cert: str | None,
    timeout: float,
) -> KubeflowClient:
    from kubeflow.submit import Credentials, KubeflowClient

    if not host:
        raise UserError(
            f"which Kubeflow Pipelines? Say --host URL or set {_HOST}; with 'kubectl port-forward "
            "-n kubeflow svc/ml-pipeline 8888:8888' it is http://localhost:8888"
        )
    cookie = os.environ.get(_COOKIE)
    if cookie_file:
        try:
            cookie = pathlib.Path(cookie_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise UserError(f"--cookie-file {cookie_file}: cannot be read") from None
    credentials = Credentials(
        token=None if token_file else os.environ.get(_TOKEN),
        token_file=token_file,
        cookie=cookie,
        ca_file=ca_cert,
    )
    return KubeflowClient(host, credentials, namespace=namespace, timeout=timeout)


# The function gets ``client``, a KubeflowClient.
_backend = options.gathered(
    "client",
    _client,
    option("--host URL", "address of Kubeflow Pipelines", envvar=_HOST, show_envvar=True),
    option("--namespace NAME", "namespace of a multi-user installation"),
    option(
        "--token-file FILE",
        f"bearer token, such as a service account's ({_TOKEN} holds one itself)",
    ),
    option("--cookie-file FILE", f"session cookie NAME=VALUE ({_COOKIE} holds it)"),
    option("--ca-cert FILE", "authority of its certificate, PEM"),
    option("--timeout S", "seconds for an answer", type=POSITIVE, default=30.0),
)


def _starter(
    source: options.ConfigSource,
    experiment: str,
    name: str | None,
    param: tuple[str, ...],
    service_account: str | None,
) -> Start:
    def start(client: KubeflowClient, trigger: dict[str, Any] | None = None) -> str:
        from kubeflow import compiler, submit

        config, values = _load(source)
        parameters = compiler.run_parameters(config, param)
        package = _compile(config, values)
        # Again under the same name, a schedule takes the place of the one before.
        title = submit.new_name(config.name) if trigger is None else config.name
        submission = {
            "display_name": name or title,
            "experiment_id": client.experiment(experiment),
            "pipeline_version_reference": client.upload(config.name, package),
            "runtime_config": {"parameters": parameters},
        }
        if service_account:
            submission["service_account"] = service_account
        if trigger is None:
            return client.run(submission)
        made, account = client.schedule(submission, trigger)
        if service_account and account and account != service_account:
            print(
                f"mnist-ae: note: this backend will run it as {account}, not {service_account}; "
                "Kubeflow Pipelines 2.17 or newer heeds --service-account of a schedule",
                file=sys.stderr,
            )
        return made

    return start


# The function gets ``start``, which compiles, uploads and runs, or schedules by a trigger, and
# gives the identifier of what was made.
_submission = options.gathered(
    "start",
    _starter,
    options.configuration(),
    option(
        "--experiment NAME",
        "experiment of the run; made where there is none",
        default="mnist-autoencoder",
    ),
    option("--name NAME", "name of the run", show_default="made of the time"),
    option("--param KEY=VALUE", "a run parameter, such as epochs=20 (repeatable)", multiple=True),
    option("--service-account NAME", "that the pods run as"),
)
_waiting = options.together(
    option("--patience S", "seconds to wait at most", type=_NOT_NEGATIVE, default=86_400.0),
    option("--interval S", "seconds between looks", type=_NOT_NEGATIVE, default=5.0),
)
_run_id = click.argument("run_id", metavar="RUN")


@kubeflow.command("compile")
@options.configuration()
@option("-o --output FILE", "what is written", default="pipeline.yaml")
def compile_(source: options.ConfigSource, output: str) -> None:
    """Write the pipeline as KFP v2 YAML."""
    from pipeline import output_files

    path = pathlib.Path(output)
    if path.suffix != ".yaml":
        raise UserError(f"{path}: KFP takes files whose name ends in .yaml")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: the folder does not exist; make it first")
    output_files.write(path, _compile(*_load(source)))
    print(path)


@kubeflow.command()
@options.configuration()
@flag("--gpu", "with CUDA")
def image(source: options.ConfigSource, gpu: bool) -> None:
    """Print the command that builds the image."""
    config, _ = _load(source)
    project = pathlib.Path(__file__).resolve().parent.parent
    command = ["docker", "build", "--platform=linux/amd64", "--file=kubeflow/Dockerfile"]
    if gpu:
        command.append("--build-arg=VARIANT=gpu")
    command += [f"--tag={config.kubeflow.image}", "."]
    print(f"cd {shlex.quote(str(project))} && {shlex.join(command)}")
    print(f"docker push {shlex.quote(config.kubeflow.image)}")


@kubeflow.command()
@_submission
@_backend
@options.as_json("a JSON object")
@flag("--wait", "until the run has ended")
@option("--started RUN", "the run; no other is started", hidden=True)
@_waiting
def submit(
    start: Start,
    client: KubeflowClient,
    as_json: bool,
    wait: bool,
    started: str | None,
    patience: float,
    interval: float,
) -> int:
    """Upload the pipeline and run it once."""
    run_id = started or start(client)
    if wait:
        # Known before the end, to whoever is interrupted meanwhile.
        print(f"run {run_id}", file=sys.stderr, flush=True)
        return _follow(client, run_id, as_json, patience, interval)
    if as_json:
        print(json.dumps({"run_id": run_id}))
    else:
        print(f"run {run_id}")
        print(f"follow it: mnist-ae kubeflow wait {run_id}", file=sys.stderr)
    return 0


@kubeflow.command()
@_submission
@_backend
@options.as_json("a JSON object")
@option("--cron LINE", "six fields, seconds first: '0 30 2 * * *' is 02:30 daily")
@option("--every TIME", "such as 15m, 6h or 1d")
@flag("--catch-up", "run once for each time that was missed")
@option("--max-concurrency N", "runs at once", type=Integer(1, 10), default=1)
def schedule(
    start: Start,
    client: KubeflowClient,
    as_json: bool,
    cron: str | None,
    every: str | None,
    catch_up: bool,
    max_concurrency: int,
) -> None:
    """Upload the pipeline and run it again and again, by --cron or --every."""
    from kubeflow import submit

    if bool(cron) == bool(every):
        raise click.UsageError("give one of --cron and --every")
    trigger = submit.trigger(cron, every, max_concurrency=max_concurrency, catch_up=catch_up)
    recurring = start(client, trigger)
    print(json.dumps({"recurring_run_id": recurring}) if as_json else f"recurring run {recurring}")


@kubeflow.command()
@_run_id
@_backend
@options.as_json("a JSON object")
def status(run_id: str, client: KubeflowClient, as_json: bool) -> None:
    """Show how far a run is."""
    state = client.state(run_id)
    if as_json:
        print(json.dumps(dataclasses.asdict(state)))
        return
    print(f"{state.state.lower()}  {state.name or state.run_id}")
    for task in state.tasks:
        print(f"  {task.state.lower():<10} {task.name}")
    if state.error:
        print(f"  {' '.join(state.error.split())}")


@kubeflow.command()
@_run_id
@_backend
@_waiting
@options.as_json("a JSON object")
def wait(
    run_id: str, client: KubeflowClient, patience: float, interval: float, as_json: bool
) -> int:
    """Wait for a run, node by node."""
    return _follow(client, run_id, as_json, patience, interval)


@kubeflow.command()
@_run_id
@_backend
def cancel(run_id: str, client: KubeflowClient) -> None:
    """End a run."""
    client.cancel(run_id)
    print(f"cancelled  {run_id}")


def _load(source: options.ConfigSource) -> tuple[PipelineConfig, dict[str, Any]]:
    """The configuration, and the mapping that it was made of; ``--data-dir`` is the nodes'."""
    from pipeline import config

    assignments = source.assignments
    if source.data_dir:
        assignments.append(f"kubeflow.data_dir={json.dumps(source.data_dir)}")
    values = config.read(source.config, assignments)
    return config.parse(values, where=source.config or "command line"), values


def _compile(config: PipelineConfig, values: dict[str, Any]) -> str:
    """The package that KFP takes, as YAML; a UserError where it cannot run there."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from kubeflow import compiler
    from pipeline import console

    # The SDK and TensorFlow have much to say that is of no use here.
    with console.quiet_streams(os.devnull, verbose=False):
        return compiler.compile_pipeline(config, values)


def _follow(
    client: KubeflowClient, run_id: str, as_json: bool, patience: float, interval: float
) -> int:
    """Shows each node as it ends; 1 where the run did not succeed."""
    seen: dict[str, str] = {}
    state = None
    for state in client.wait(run_id, timeout=patience, interval=interval):
        for task in state.tasks:
            if seen.get(task.name) != task.state and task.state not in ("PENDING", "?"):
                seen[task.name] = task.state
                print(f"{task.state.lower():<10} {task.name}", file=sys.stderr, flush=True)
    assert state is not None
    if as_json:
        print(json.dumps(dataclasses.asdict(state)))
    else:
        print(f"{state.state.lower()}  {run_id}")
    if state.state == "SUCCEEDED":
        return 0
    failed = [task.name for task in state.tasks if task.state == "FAILED"]
    reason = " ".join(state.error.split()) or (f"failed at {', '.join(failed)}" if failed else "")
    print(f"mnist-ae: error: run {run_id} {state.state.lower()}: {reason}", file=sys.stderr)
    return _EXIT_FAILED
