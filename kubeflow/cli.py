"""The ``mnist-ae kubeflow`` commands.

:func:`register` adds them to a parser; nothing but the standard library is
imported until one runs.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shlex
import sys
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kubeflow.submit import KubeflowClient, RunState
    from pipeline.config import PipelineConfig

ConfigSource = Callable[[argparse.Namespace], tuple[str | None, list[str]]]

_TOKEN = "MNIST_AE_KFP_TOKEN"
_COOKIE = "MNIST_AE_KFP_COOKIE"
_HOST = "MNIST_AE_KFP_HOST"
_EXIT_FAILED = 1
_EXPERIMENT = "mnist-autoencoder"


def register(
    commands: Any, add_config_arguments: Callable[..., None], source: ConfigSource
) -> None:
    """Adds ``kubeflow`` and its commands.

    Args:
      commands: The subparsers of the main parser.
      add_config_arguments: Adds what describes a configuration.
      source: Gives the file and the assignments of parsed arguments.
    """
    kubeflow = commands.add_parser("kubeflow", help="the same pipeline on Kubeflow Pipelines")
    actions = kubeflow.add_subparsers(dest="action", metavar="ACTION", required=True)

    compile_ = actions.add_parser("compile", help="write the pipeline as KFP v2 YAML")
    add_config_arguments(compile_)
    compile_.add_argument(
        "-o", "--output", default="pipeline.yaml", metavar="FILE", help="default: pipeline.yaml"
    )
    compile_.set_defaults(run=lambda args: _compile(args, source))

    image = actions.add_parser("image", help="print the command that builds the image")
    add_config_arguments(image)
    image.add_argument("--gpu", action="store_true", help="with CUDA")
    image.set_defaults(run=lambda args: _image(args, source))

    submit = actions.add_parser("submit", help="upload the pipeline and run it once")
    add_config_arguments(submit)
    _add_connection(submit)
    _add_submission(submit)
    submit.add_argument("--wait", action="store_true", help="until the run has ended")
    _add_patience(submit)
    submit.set_defaults(run=lambda args: _submit(args, source))

    schedule = actions.add_parser("schedule", help="upload the pipeline and run it again and again")
    add_config_arguments(schedule)
    _add_connection(schedule)
    _add_submission(schedule)
    when = schedule.add_mutually_exclusive_group(required=True)
    when.add_argument(
        "--cron", metavar="LINE", help="six fields, seconds first: '0 30 2 * * *' is 02:30 daily"
    )
    when.add_argument("--every", metavar="TIME", help="such as 15m, 6h or 1d")
    schedule.add_argument(
        "--catch-up", action="store_true", help="run once for each time that was missed"
    )
    schedule.add_argument(
        "--max-concurrency",
        type=int,
        default=1,
        metavar="N",
        help="runs at once, 1 (default) to 10",
    )
    schedule.set_defaults(run=lambda args: _schedule(args, source))

    for name, function, text in (
        ("status", _status, "show how far a run is"),
        ("wait", _wait, "wait for a run, node by node"),
        ("cancel", _cancel, "end a run"),
    ):
        parser = actions.add_parser(name, help=text)
        parser.add_argument("run_id", metavar="RUN")
        _add_connection(parser)
        if name == "wait":
            _add_patience(parser)
        if name != "cancel":
            parser.add_argument("--json", action="store_true", help="print a JSON object")
        parser.set_defaults(run=function)


def _add_connection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("backend")
    group.add_argument("--host", metavar="URL", help=f"of Kubeflow Pipelines ({_HOST})")
    group.add_argument("--namespace", metavar="NAME", help="of a multi-user installation")
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"bearer token, such as a service account's ({_TOKEN} holds one itself)",
    )
    group.add_argument(
        "--cookie-file", metavar="FILE", help=f"session cookie NAME=VALUE ({_COOKIE} holds it)"
    )
    group.add_argument("--ca-cert", metavar="FILE", help="authority of the backend's certificate")
    group.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="for an answer (default 30)"
    )


def _add_submission(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experiment", default=_EXPERIMENT, metavar="NAME")
    parser.add_argument("--name", metavar="NAME", help="of the run (default: made of the time)")
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a run parameter, such as epochs=20 (repeatable)",
    )
    parser.add_argument("--service-account", metavar="NAME", help="that the pods run as")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def _add_patience(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--patience", type=float, default=86_400.0, metavar="S", help="to wait (default: a day)"
    )
    parser.add_argument(
        "--interval", type=float, default=5.0, metavar="S", help="between looks (default 5)"
    )


def _load(args: argparse.Namespace, source: ConfigSource) -> tuple[PipelineConfig, dict[str, Any]]:
    from pipeline import config

    path, assignments = source(args)
    values = config.read(path, assignments)
    parsed = config.parse(values, where=path or "command line")
    if getattr(args, "data_dir", None):
        values.setdefault("kubeflow", {})["data_dir"] = args.data_dir
        parsed = config.parse(values, where=path or "command line")
    return parsed, values


def _compiled(args: argparse.Namespace, source: ConfigSource) -> tuple[PipelineConfig, str]:
    config, values = _load(args, source)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from kubeflow import compiler

    compiler.check(config)
    from pipeline import console

    # The SDK and TensorFlow have much to say that is of no use here.
    with console.quiet_streams(os.devnull, verbose=False):
        return config, compiler.compile_pipeline(config, values)


def _compile(args: argparse.Namespace, source: ConfigSource) -> int:
    from pipeline.errors import UserError

    output = pathlib.Path(args.output)
    if output.suffix != ".yaml":
        raise UserError(f"{output}: KFP takes files whose name ends in .yaml")
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output}: the folder does not exist; make it first")
    _, text = _compiled(args, source)
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, output)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{output}: cannot be written ({e.strerror})") from None
    print(output)
    return 0


def _image(args: argparse.Namespace, source: ConfigSource) -> int:
    config, _ = _load(args, source)
    project = pathlib.Path(__file__).resolve().parent.parent
    command = ["docker", "build", "--platform=linux/amd64", "--file=kubeflow/Dockerfile"]
    if args.gpu:
        command.append("--build-arg=VARIANT=gpu")
    command += [f"--tag={config.kubeflow.image}", "."]
    print(f"cd {shlex.quote(str(project))} && {shlex.join(command)}")
    print(f"docker push {shlex.quote(config.kubeflow.image)}")
    return 0


def _client(args: argparse.Namespace) -> KubeflowClient:
    from kubeflow.submit import Credentials, KubeflowClient
    from pipeline.errors import UserError

    host = args.host or os.environ.get(_HOST)
    if not host:
        raise UserError(
            f"which Kubeflow Pipelines? Say --host URL or set {_HOST}; with 'kubectl port-forward "
            "-n kubeflow svc/ml-pipeline 8888:8888' it is http://localhost:8888"
        )
    cookie = os.environ.get(_COOKIE)
    if args.cookie_file:
        try:
            cookie = pathlib.Path(args.cookie_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise UserError(f"--cookie-file {args.cookie_file}: cannot be read") from None
    if args.token_file and not os.path.isfile(args.token_file):
        raise UserError(f"--token-file {args.token_file}: no such file")
    credentials = Credentials(
        token=None if args.token_file else os.environ.get(_TOKEN),
        token_file=args.token_file,
        cookie=cookie,
        ca_file=args.ca_cert,
    )
    return KubeflowClient(host, credentials, namespace=args.namespace, timeout=args.timeout)


def parameters(config: PipelineConfig, assignments: list[str]) -> dict[str, Any]:
    """The run parameters of a submission, all of them.

    Args:
      config: With the defaults.
      assignments: ``key=value`` over them.

    Raises:
      UserError: Unknown parameter or bad value.
    """
    import difflib

    from kubeflow.compiler import PARAMETERS
    from pipeline.errors import UserError

    values: dict[str, Any] = {
        "model": config.model.name,
        "epochs": config.trainer.epochs or 0,
        "data_dir": config.kubeflow.data_dir,
        "span": str(config.kubeflow.span),
        "pipeline_root": config.kubeflow.pipeline_root,
        "push_dir": config.kubeflow.push_dir,
    }
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign:
            raise UserError(f"--param {assignment}: expected KEY=VALUE, such as epochs=20")
        if key not in PARAMETERS:
            near = difflib.get_close_matches(key, PARAMETERS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(PARAMETERS)}"
            raise UserError(f"--param: no run parameter {key!r}; {hint}")
        if key == "epochs":
            if not text.isdigit():
                raise UserError(f"--param epochs={text}: expected a whole number, 0 or more")
            values[key] = int(text)
        elif key == "model":
            from trainer.models.catalogue import UnknownModelError, get_model_spec

            try:
                values[key] = get_model_spec(text).name
            except UnknownModelError as e:
                raise UserError(f"--param model: {e}") from None
        elif key == "span" and text != "latest" and not text.isdigit():
            raise UserError(f"--param span={text}: expected 'latest' or a number")
        else:
            values[key] = text
    return values


def _submit(args: argparse.Namespace, source: ConfigSource) -> int:
    client = _client(args)
    run_id = _start(client, args, source, None)
    if args.wait:
        return _follow(client, run_id, args)
    if args.json:
        print(json.dumps({"run_id": run_id}))
    else:
        print(f"run {run_id}")
        print(f"follow it: mnist-ae kubeflow wait {run_id}", file=sys.stderr)
    return 0


def _schedule(args: argparse.Namespace, source: ConfigSource) -> int:
    from kubeflow import submit
    from pipeline.errors import UserError

    trigger: dict[str, Any] = {
        "cron": submit.check_cron(args.cron) if args.cron else None,
        "interval_seconds": submit.parse_interval(args.every) if args.every else None,
        "max_concurrency": args.max_concurrency,
        "catch_up": args.catch_up,
    }
    if not 1 <= args.max_concurrency <= 10:
        raise UserError(f"--max-concurrency {args.max_concurrency}: KFP takes 1 to 10")
    recurring = _start(_client(args), args, source, trigger)
    print(
        json.dumps({"recurring_run_id": recurring}) if args.json else f"recurring run {recurring}"
    )
    return 0


def _start(
    client: KubeflowClient,
    args: argparse.Namespace,
    source: ConfigSource,
    trigger: dict[str, Any] | None,
) -> str:
    """Uploads and runs, or schedules; the identifier of what was made."""
    from kubeflow import submit

    config, values = _load(args, source)
    run_parameters = parameters(config, args.param)
    config, package = _compiled(args, source)
    del values
    experiment_id = client.experiment(args.experiment)
    # Again under the same name, a schedule takes the place of the one before.
    name = args.name or (submit.new_name(config.name) if trigger is None else config.name)
    submission = submit.Submission(
        name,
        *client.upload(config.name, package),
        experiment_id=experiment_id,
        parameters=run_parameters,
        service_account=args.service_account,
    )
    return client.run(submission) if trigger is None else client.schedule(submission, **trigger)


def _status(args: argparse.Namespace) -> int:
    state = _client(args).state(args.run_id)
    if args.json:
        print(json.dumps(_as_dict(state)))
    else:
        print(f"{state.state.lower()}  {state.name or state.run_id}")
        for task in state.tasks:
            print(f"  {task.state.lower():<10} {task.name}")
        if state.error:
            print(f"  {' '.join(state.error.split())}")
    return 0


def _wait(args: argparse.Namespace) -> int:
    return _follow(_client(args), args.run_id, args)


def _follow(client: KubeflowClient, run_id: str, args: argparse.Namespace) -> int:
    """Shows each node as it ends; 1 where the run did not succeed."""
    seen: dict[str, str] = {}
    state = None
    for state in client.wait(run_id, timeout=args.patience, interval=args.interval):
        for task in state.tasks:
            if seen.get(task.name) != task.state and task.state not in ("PENDING", "?"):
                seen[task.name] = task.state
                print(f"{task.state.lower():<10} {task.name}", file=sys.stderr, flush=True)
    assert state is not None
    if args.json:
        print(json.dumps(_as_dict(state)))
    else:
        print(f"{state.state.lower()}  {run_id}")
    if state.state == "SUCCEEDED":
        return 0
    failed = [task.name for task in state.tasks if task.state == "FAILED"]
    reason = " ".join(state.error.split()) or (f"failed at {', '.join(failed)}" if failed else "")
    print(f"mnist-ae: error: run {run_id} {state.state.lower()}: {reason}", file=sys.stderr)
    return _EXIT_FAILED


def _as_dict(state: RunState) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(state)


def _cancel(args: argparse.Namespace) -> int:
    _client(args).cancel(args.run_id)
    print(f"cancelled  {args.run_id}")
    return 0
