"""Submission against a loopback backend that records every request."""

from __future__ import annotations

import socket
import time

import pytest
import yaml

from kubeflow import submit
from pipeline import cli
from pipeline.errors import UserError

TOKEN = "very-secret-token"
SUBMISSION = {"display_name": "name", "experiment_id": "e", "runtime_config": {"parameters": {}}}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("HOST", "TOKEN", "COOKIE"):
        monkeypatch.delenv(f"MNIST_AE_KFP_{name}", raising=False)
    monkeypatch.setattr(submit, "PAUSE_SECONDS", 0.01)


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(["kubeflow", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_submitting_uploads_the_pipeline_and_runs_that_version(backend, capsys):
    words = ["submit", "--host", backend.host, "--model", "simple", "--param", "epochs=7"]
    code, out, _ = run(capsys, *words, "--service-account", "runner", "--name", "tonight")
    assert (code, out) == (0, "run r-1\n")
    assert backend.posts("/pipelines")[0].json["display_name"] == "mnist-autoencoder"
    (upload,) = backend.posts("/pipelines/upload_version")
    assert upload.query["pipelineid"] == "p-1"
    package = upload.body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]
    assert next(iter(yaml.safe_load_all(package)))["pipelineInfo"]["name"] == "mnist-autoencoder"
    body = backend.posts("/runs")[0].json
    assert body["display_name"] == "tonight"
    assert body["experiment_id"] == "e-1"
    assert body["service_account"] == "runner"
    assert body["pipeline_version_reference"] == {
        "pipeline_id": "p-1",
        "pipeline_version_id": "v-1",
    }
    assert body["runtime_config"]["parameters"]["epochs"] == 7
    assert body["runtime_config"]["parameters"]["model"] == "simple"
    # Another one: a new version of the same pipeline, in the same experiment.
    assert run(capsys, *words, "--set", "evaluator.max_mse=0.5")[0] == 0
    assert backend.posts("/pipelines/upload_version")[1].query["pipelineid"] == "p-1"
    reference = backend.posts("/runs")[1].json["pipeline_version_reference"]
    assert reference["pipeline_version_id"] == "v-2"
    assert len(backend.posts("/experiments")) == len(backend.posts("/pipelines")) == 1


def test_the_same_pipeline_is_uploaded_once(backend, capsys):
    words = ["submit", "--host", backend.host, "--model", "simple"]
    for _ in range(2):
        assert run(capsys, *words)[0] == 0
    assert len(backend.posts("/pipelines/upload_version")) == 1
    references = [r.json["pipeline_version_reference"] for r in backend.posts("/runs")]
    assert references == [{"pipeline_id": "p-1", "pipeline_version_id": "v-1"}] * 2


def test_a_backend_that_gives_tasks_no_run_id_is_refused(backend, capsys):
    # backend/src/v2/driver resolves {{$.pipeline_job_uuid}} from 2.5.0 on, no earlier tag.
    backend.tag = "2.4.1"
    code, out, err = run(capsys, "submit", "--host", backend.host, "--model", "simple")
    assert (code, out) == (3, "")
    assert "2.4.1" in err and "2.5 or newer" in err and err.count("\n") == 1
    assert not [r for r in backend.requests if r.path.endswith("/runs")]


def test_a_schedule_says_when_and_how_many(backend, capsys):
    words = ["schedule", "--host", backend.host, "--model", "simple"]
    code, out, _ = run(capsys, *words, "--cron", "0 30 2 * * *", "--max-concurrency", "2")
    assert (code, out) == (0, "recurring run rr-1\n")
    body = backend.posts("/recurringruns")[0].json
    assert body["trigger"] == {"cron_schedule": {"cron": "0 30 2 * * *"}}
    assert (body["max_concurrency"], body["no_catchup"], body["mode"]) == ("2", True, "ENABLE")
    assert run(capsys, *words, "--every", "6h", "--catch-up")[0] == 0
    body = backend.posts("/recurringruns")[1].json
    assert body["trigger"] == {"periodic_schedule": {"interval_second": "21600"}}
    assert body["no_catchup"] is False


def test_a_schedule_that_runs_as_somebody_else_says_so(backend, capsys):
    words = ["schedule", "--host", backend.host, "--model", "simple", "--every", "6h"]
    assert run(capsys, *words)[2] == ""
    code, out, err = run(capsys, *words, "--service-account", "mnist-ae-runner")
    assert (code, out) == (0, "recurring run rr-2\n")
    assert "pipeline-runner, not mnist-ae-runner" in err and err.count("\n") == 1
    backend.tag = "2.17.0"
    assert run(capsys, *words, "--service-account", "mnist-ae-runner")[2] == ""


def test_a_schedule_made_again_takes_the_place_of_the_first(backend, capsys):
    words = ["schedule", "--host", backend.host, "--model", "simple", "--every", "6h"]
    assert run(capsys, *words, "--name", "nightly")[0] == 0
    assert run(capsys, *words, "--name", "other")[0] == 0
    assert run(capsys, *words, "--name", "nightly", "--param", "epochs=3")[0] == 0
    assert backend.recurring == {"rr-2": "other", "rr-3": "nightly"}
    # Without a name it is the pipeline's.
    for _ in range(2):
        assert run(capsys, *words)[0] == 0
    assert sorted(backend.recurring.values()) == ["mnist-autoencoder", "nightly", "other"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cron", "30 2 * * *"], "you mean '0 30 2 * * *'"),
        (["--cron", "0 61 2 * * *"], "61 is not in 0 to 59"),
        (["--cron", "whenever"], "six fields"),
        (["--every", "5"], "such as 15m"),
        (["--every", "10s"], "at least 60s"),
        (["--every", "1h", "--max-concurrency", "11"], "11 is not in the range 1<=x<=10"),
        (["--every", "1h", "--param", "epoch=3"], "did you mean 'epochs'"),
        (["--every", "1h", "--param", "epochs=-3"], "whole number"),
        (["--every", "1h", "--param", "model=simpel"], "simple"),
        (["--every", "1h", "--param", "span=x"], "'latest' or a number"),
    ],
)
def test_a_bad_schedule_is_refused_before_anything_is_sent(backend, capsys, words, expected):
    code, out, err = run(capsys, "schedule", "--host", backend.host, "--model", "simple", *words)
    assert (code, out) == (2, "")
    assert expected in err and err.count("\n") == 1
    assert not [r for r in backend.requests if r.method == "POST"]


def _run_state(state, **tasks):
    """A run as the API server answers: a detail for each node of the Argo workflow.

    apiserver/server/api_converter.go, toModelTask: the name is Argo's display
    name; identifiers of a node are not given out.
    v2/compiler/argocompiler/dag.go and container.go: names of the nodes.
    """
    names = {"mnist-autoencoder-x7k2p": state, "root-driver": "SUCCEEDED", "root": state}
    details = [{"display_name": name, "state": value} for name, value in names.items()]
    for name, value in tasks.items():
        details += [
            {"display_name": f"{name}-driver", "state": "SUCCEEDED"},
            {"display_name": name, "state": value},
            {"display_name": "executor", "state": value},
            {"display_name": "executor(0)", "state": value},
        ]
    for second, detail in enumerate(details):
        detail["start_time"] = f"2026-01-01T00:00:{second:02d}Z"
    return {"display_name": "tonight", "state": state, "run_details": {"task_details": details}}


def test_status_and_wait_show_the_nodes(backend, capsys):
    backend.run_states = [
        _run_state("RUNNING", transform="SUCCEEDED", trainer="RUNNING"),
        _run_state("RUNNING", transform="SUCCEEDED", trainer="RUNNING"),
        _run_state("SUCCEEDED", transform="SUCCEEDED", trainer="SUCCEEDED"),
    ]
    code, out, _ = run(capsys, "status", "r-1", "--host", backend.host)
    assert code == 0
    assert out.splitlines() == [
        "running  tonight",
        "  succeeded  transform",
        "  running    trainer",
    ]
    code, out, err = run(capsys, "wait", "r-1", "--host", backend.host, "--interval", "0.01")
    assert (code, out) == (0, "succeeded  r-1\n")
    assert err.splitlines() == [
        "succeeded  transform",
        "running    trainer",
        "succeeded  trainer",
    ]


def test_a_failed_run_is_said_to_be_one(backend, capsys):
    backend.run_states = [_run_state("FAILED", transform="SUCCEEDED", trainer="FAILED")]
    code, _, err = run(capsys, "wait", "r-1", "--host", backend.host)
    assert code == 1
    assert err.splitlines()[-1] == "mnist-ae: error: run r-1 failed: failed at trainer"


def test_a_task_whose_driver_failed_is_named(backend, capsys):
    state = _run_state("FAILED", transform="SUCCEEDED")
    driver = {"display_name": "trainer-driver", "state": "FAILED", "start_time": "2026-01-02"}
    state["run_details"]["task_details"].append(driver)
    backend.run_states = [state]
    code, _, err = run(capsys, "wait", "r-1", "--host", backend.host)
    assert code == 1
    assert err.splitlines()[-1] == "mnist-ae: error: run r-1 failed: failed at trainer"


def test_waiting_has_an_end(backend, capsys):
    backend.run_states = [_run_state("RUNNING")]
    words = ["wait", "r-1", "--host", backend.host, "--patience", "0.05", "--interval", "0.02"]
    code, _, err = run(capsys, *words)
    assert code == 3 and "has not ended" in err


def test_cancelling_ends_the_run(backend, capsys):
    code, out, _ = run(capsys, "cancel", "r-1", "--host", backend.host)
    assert (code, out) == (0, "cancelled  r-1\n")
    assert backend.posts(":terminate")[0].path == "/apis/v2beta1/runs/r-1:terminate"


def test_every_way_to_prove_who_one_is(backend, capsys, tmp_path, monkeypatch):
    backend.run_states = [_run_state("SUCCEEDED")]
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    status = ["status", "r-1", "--host", backend.host]
    run(capsys, *status, "--token-file", str(token))
    assert backend.requests[-1].headers["Authorization"] == f"Bearer {TOKEN}"
    monkeypatch.setenv("MNIST_AE_KFP_TOKEN", "other")
    run(capsys, *status)
    assert backend.requests[-1].headers["Authorization"] == "Bearer other"
    monkeypatch.setenv("MNIST_AE_KFP_COOKIE", "session=abc")
    run(capsys, *status)
    assert backend.requests[-1].headers["Cookie"] == "session=abc"


def test_a_token_file_is_read_anew_for_each_request(backend, tmp_path):
    backend.run_states = [_run_state("SUCCEEDED")]
    token = tmp_path / "token"
    token.write_text("first")
    client = submit.KubeflowClient(backend.host, submit.Credentials(token_file=str(token)))
    client.state("r-1")
    token.write_text("second")
    client.state("r-1")
    sent = [r.headers["Authorization"] for r in backend.requests]
    assert sent == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("status", [401, 403, 302])
def test_an_expired_token_is_one_line_and_not_repeated(backend, capsys, monkeypatch, status):
    monkeypatch.setenv("MNIST_AE_KFP_TOKEN", TOKEN)
    backend.faults = [status]
    code, out, err = run(capsys, "status", "r-1", "--host", backend.host)
    assert (code, out) == (3, "")
    assert "expired" in err and err.count("\n") == 1
    assert TOKEN not in err
    assert len(backend.requests) == 1


def test_reading_is_tried_again_after_a_bad_gateway(backend, capsys):
    backend.run_states = [_run_state("SUCCEEDED")]
    backend.faults = [503, 502]
    assert run(capsys, "status", "r-1", "--host", backend.host)[0] == 0
    assert len(backend.requests) == 3
    backend.faults = [503] * 10
    code, _, err = run(capsys, "status", "r-1", "--host", backend.host)
    assert code == 3 and "503" in err and "tried 4 times" in err


def test_what_creates_something_is_not_sent_twice(backend):
    client = submit.KubeflowClient(backend.host, submit.Credentials(), timeout=300)
    backend.faults = [503]
    with pytest.raises(submit.KubeflowError, match="503"):
        client.run(SUBMISSION)
    assert len(backend.posts("/runs")) == 1
    backend.faults = [backend.SILENCE]
    client = submit.KubeflowClient(backend.host, submit.Credentials(), timeout=1)
    with pytest.raises(submit.KubeflowError, match="may have been done"):
        client.run(SUBMISSION)
    # It has given up; on a busy machine the backend may not have read it yet.
    while len(backend.posts("/runs")) < 2:
        time.sleep(0.01)
    assert len(backend.posts("/runs")) == 2


def test_a_lost_answer_is_told_by_what_broke_and_not_by_what_it_says(backend):
    """An address may well contain the name of an exception."""
    address = f"{backend.host}/NewConnectionError"
    client = submit.KubeflowClient(address, submit.Credentials(), timeout=300)
    backend.faults = ["hang up"] * 9
    with pytest.raises(submit.KubeflowError, match="may have been done"):
        client.run(SUBMISSION)
    assert len(backend.requests) == 1


def test_a_slow_answer_to_a_question_is_waited_for_anew(backend, capsys):
    backend.run_states = [_run_state("SUCCEEDED")]
    backend.faults = [backend.SILENCE]
    words = ["status", "r-1", "--host", backend.host, "--timeout", "1"]
    assert run(capsys, *words)[0] == 0
    backend.faults = [backend.SILENCE] * 4
    code, _, err = run(capsys, *words)
    assert code == 3 and "no answer in 1 s" in err


def test_what_the_backend_says_is_shown(backend, capsys):
    code, _, err = run(capsys, "status", "nobody", "--host", backend.host)
    assert code == 3 and "404: Run not found" in err and err.count("\n") == 1


def test_an_upload_that_is_refused_says_why(backend, tmp_path):
    """In KFP's own words the reason is one line of the details, a stack trace the others."""
    client = submit.KubeflowClient(backend.host, submit.Credentials())
    said = {
        "error_message": "Failed to create a pipeline version",
        "error_details": "Invalid input error: unknown template format\ngithub.com/kubeflow/...\n",
    }
    backend.faults = [None] * 4 + [(400, said)]
    with pytest.raises(submit.KubeflowError) as caught:
        client.upload("p", "pipelineInfo: {}")
    assert backend.requests[-1].path.endswith("/upload_version")
    told = "400: Failed to create a pipeline version: Invalid input error: unknown template format"
    assert str(caught.value).endswith(told)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("http://no-such-host.invalid", "no such host"),
        ("ftp://somewhere", "expected an address"),
        ("", "which Kubeflow Pipelines?"),
    ],
)
def test_a_wrong_host_is_one_line(capsys, host, expected):
    words = ["--host", host] if host else []
    code, out, err = run(capsys, "status", "r-1", *words)
    assert code in (2, 3) and out == ""
    assert expected in err and err.count("\n") == 1


def test_a_host_where_nobody_listens_is_one_line(capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code, _, err = run(capsys, "status", "r-1", "--host", f"localhost:{port}")
    assert code == 3 and "connection refused" in err and err.count("\n") == 1


def test_plain_http_where_tls_is_meant_is_told(backend, capsys):
    host = backend.host.replace("http://", "https://")
    code, _, err = run(capsys, "status", "r-1", "--host", host)
    assert code == 3 and err.count("\n") == 1
    assert "TLS" in err or "certificate" in err


def test_no_credential_is_shown_by_the_object_that_holds_it():
    shown = repr(submit.Credentials(token=TOKEN, cookie=TOKEN))
    assert TOKEN not in shown


def test_a_token_file_that_is_not_there_is_named(capsys):
    code, _, err = run(capsys, "status", "r", "--host", "http://h", "--token-file", "/nowhere")
    assert code == 2 and "/nowhere" in err


@pytest.mark.parametrize("host", ["localhost/pipeline", "[::1]", "127.0.0.1:9/pipeline"])
def test_this_machine_is_asked_without_tls(capsys, host):
    code, _, err = run(capsys, "status", "r", "--host", host)
    assert code == 3 and f"http://{host}" in err


@pytest.mark.parametrize("host", ["[::1", "http://kfp:99999", "ftp://kfp", "http://"])
def test_an_address_that_is_none_is_one_line(capsys, host):
    code, _, err = run(capsys, "status", "r", "--host", host)
    assert code == 2 and "expected an address" in err and err.count("\n") == 1


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("15m", 900), ("6h", 21600)])
def test_intervals_are_seconds(text, seconds):
    assert submit.parse_interval(text) == seconds


@pytest.mark.parametrize(
    "line",
    ["0 */15 8-18 * JAN-MAR MON", "0 0/15,40 ? * * sat", "0 5-50/5 * 31 12 0", "0 0/90 * * * *"],
)
def test_a_cron_line_that_the_backend_takes_passes(line):
    assert submit.check_cron(f"  {line} ") == line


@pytest.mark.parametrize(
    "line",
    [
        "0 0 25 * * *", "0 foo * * * *", "0 70/90 * * * *", "0 5/x * * * *", "0 50-5 * * * *",
        "0 */0 * * * *", "0 1-2-3 * * * *", "0 * * * * 7", "0 * mon * * *", "0 ² * * * *",
        "0 1/ * * * *", "0 0 0 * mon *", "0 ٣ * * * *",
    ],
)  # fmt: skip
def test_a_cron_line_that_the_backend_refuses_does_not(line):
    with pytest.raises(UserError, match="--cron"):
        submit.check_cron(line)
