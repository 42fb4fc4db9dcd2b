"""The deployment files, offline: schemas, and names, ports and folders that agree."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import pathlib
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

import serving
from pipeline.continuous import prometheus
from pipeline.continuous.state import State
from serving import launcher
from serving.client import ReconstructionClient
from serving.standin import settings
from serving.standin.metrics import PATH as METRICS_PATH
from serving.standin.metrics import Metrics
from tests.serving.process import RealServer, needs_binary

DEPLOY = pathlib.Path(serving.__file__).parent / "deploy"
WATCH = DEPLOY.parent.parent / "pipeline" / "deploy"
GRPC, REST = 8500, 8501


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def manifests() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "serving.yaml").read_text())
    return {document["kind"]: document for document in documents}


def pod() -> dict[str, Any]:
    return manifests()["Deployment"]["spec"]["template"]["spec"]


def container() -> dict[str, Any]:
    [item] = pod()["containers"]
    return item


def flags(arguments: list[str]) -> dict[str, str]:
    return dict(item.removeprefix("--").split("=", 1) for item in arguments)


def shipped(root: pathlib.Path, **instead: Any) -> list[str]:
    """The server's flags in compose and Kubernetes but its ports, for the folders of a machine.

    Args:
      root: Its ``serving`` is the volume.
      instead: Flags with other values.
    """
    told = {**flags(container()["args"]), **instead}
    places = {"/models/": f"{root / 'serving'}/", "/config/": f"{DEPLOY}/"}
    for inside, here in places.items():
        told = {flag: str(value).replace(inside, here) for flag, value in told.items()}
    return [f"--{k}={v}" for k, v in told.items() if k not in ("port", "rest_api_port")]


def jobs() -> dict[str, Any]:
    configs = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    return {config["job_name"]: config for config in configs}


def model_names() -> list[str]:
    file = DEPLOY / "models.config"
    return list(settings.parse_models(file.read_text(), file.name))


def test_the_manifests_fit_the_kubernetes_schemas() -> None:
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    for document in manifests().values():
        kubernetes_validate.validate(document, "1.29", strict=True)
    assert set(manifests()) == {
        "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"
    }  # fmt: skip


def test_kustomize_builds() -> None:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not on the PATH")
    done = subprocess.run(
        ["kubectl", "kustomize", "--load-restrictor", "LoadRestrictionsNone",
         str(DEPLOY / "kubernetes")], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kinds = [item["kind"] for item in yaml.safe_load_all(done.stdout)]
    assert sorted(kinds) == sorted([*manifests(), "ConfigMap"])


def test_compose_is_what_docker_takes() -> None:
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    done = subprocess.run(
        [docker, "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_server_without_a_model_yet_is_not_restarted() -> None:
    """The real one opens no port before every model of its file is there: seen with 2.16.1."""
    (server,) = pod()["containers"]
    probe = server["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 7 * 24 * 3600
    assert "initialDelaySeconds" not in server["livenessProbe"]


def test_compose_and_kubernetes_start_the_server_alike() -> None:
    service = compose()["services"]["serving"]
    assert service["command"] == container()["args"]
    assert service["entrypoint"] == container()["command"]
    assert service["image"].replace("${SERVING_TAG:-", "").rstrip("}") == container()["image"]
    # The one that `mnist-ae serve --backend docker` would take on this stack.
    if launcher.docker_image().startswith("tensorflow/serving:2.16."):
        assert container()["image"] == launcher.docker_image()


def test_every_file_that_the_server_is_told_of_is_mounted() -> None:
    told = flags(container()["args"])
    service = compose()["services"]["serving"]
    mounted = dict(item.rsplit(":", 2)[:2][::-1] for item in service["volumes"])
    generated = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    [config_map] = generated["configMapGenerator"]
    in_map = {pathlib.Path(file).name for file in config_map["files"]}
    assert told["model_config_file"] == "/models/models.config"
    for flag in ("batching_parameters_file", "monitoring_config_file"):
        inside = pathlib.PurePosixPath(told[flag])
        outside = DEPLOY / mounted[str(inside)]
        assert outside.is_file()
        assert inside.name in in_map and str(inside.parent) == "/config"
    assert "/models" in mounted
    for file in config_map["files"]:
        assert (DEPLOY / "kubernetes" / file).resolve().is_file()
    volumes = {item["name"]: item for item in pod()["volumes"]}
    assert volumes["config"]["configMap"]["name"] == config_map["name"]
    mounts = {item["mountPath"]: item for item in container()["volumeMounts"]}
    assert mounts["/config"]["name"] == "config" and mounts["/models"]["name"] == "models"


def start_scripts() -> list[str]:
    """What copies the first models.config beside the models: for compose, for Kubernetes."""
    compose_start = compose()["services"]["start"]
    assert compose_start["entrypoint"] == ["/bin/sh", "-c"]
    assert compose()["services"]["serving"]["depends_on"] == {
        "start": {"condition": "service_completed_successfully"}
    }
    [item] = pod()["initContainers"]
    mounts = {mount["mountPath"]: mount for mount in item["volumeMounts"]}
    assert item["env"] == [{"name": "MODELS", "value": "/volume"}]
    assert not mounts["/volume"].get("readOnly") and mounts["/volume"]["name"] == "models"
    assert compose_start["environment"] == {"MODELS": "/models"}
    *shell, script = item["command"]
    assert shell == ["/bin/sh", "-c"]
    return [compose_start["command"][0].replace("$$", "$"), script]


def test_the_first_configuration_is_copied_once_beside_the_models(tmp_path: pathlib.Path) -> None:
    first, second = start_scripts()
    assert first == second
    script = first.replace("/config/", f"{DEPLOY}/")
    models = tmp_path / "not yet" / "models"
    environment = {"PATH": os.environ["PATH"], "HOSTNAME": "pod", "MODELS": str(models)}
    subprocess.run(["/bin/sh", "-c", script], env=environment, check=True)
    file = models / "models.config"
    assert file.read_text() == (DEPLOY / "models.config").read_text()
    file.write_text("# a rollout")
    subprocess.run(["/bin/sh", "-c", script], env=environment, check=True)
    assert file.read_text() == "# a rollout"
    assert os.listdir(models) == ["models.config"]


def test_models_lie_where_they_are_mounted() -> None:
    file = DEPLOY / "models.config"
    for name, model in settings.parse_models(file.read_text(), file.name).items():
        assert model.base_path == f"/models/{name}"


def test_ports_agree_everywhere() -> None:
    told = flags(container()["args"])
    assert (told["port"], told["rest_api_port"]) == (str(GRPC), str(REST))
    ports = {item["name"]: item["containerPort"] for item in container()["ports"]}
    assert ports == {"grpc": GRPC, "rest": REST}
    for item in manifests()["Service"]["spec"]["ports"]:
        assert item["port"] == ports[item["targetPort"]]
    published = compose()["services"]["serving"]["ports"]
    assert published == [f"127.0.0.1:{port}:{port}" for port in (GRPC, REST)]
    assert jobs()["serving"]["static_configs"] == [{"targets": [f"serving:{REST}"]}]
    watch = yaml.safe_load((WATCH / "compose.yaml").read_text())["services"]["watch"]
    [target] = jobs()["watch"]["static_configs"][0]["targets"]
    assert target == "watch:9108" and "--metrics-port=9108" in watch["command"]
    annotations = manifests()["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(REST)


def test_metrics_are_scraped_where_they_are() -> None:
    monitoring = (DEPLOY / "monitoring.config").read_text()
    [path] = re.findall(r'path: "(.+)"', monitoring)
    assert jobs()["serving"]["metrics_path"] == path == METRICS_PATH
    assert "enable: true" in monitoring


def test_probes_require_an_available_version() -> None:
    probes = [
        container()["startupProbe"]["exec"]["command"],
        container()["readinessProbe"]["exec"]["command"],
        compose()["services"]["serving"]["healthcheck"]["test"][1:],
    ]
    for command in probes:
        text = command[-1]
        assert f"/dev/tcp/127.0.0.1/{REST}" in text
        [name] = re.findall(r"/v1/models/(\w+) ", text)
        assert name in model_names()
        assert "AVAILABLE" in text
    assert container()["livenessProbe"]["tcpSocket"]["port"] == "grpc"


@pytest.mark.parametrize("kind", ["stand-in", pytest.param("real", marks=needs_binary)])
def test_the_probe_itself_tells_ready_from_not(
    built: pathlib.Path, start_server: Any, kind: str
) -> None:
    if not shutil.which("bash"):
        pytest.skip("bash is not on the PATH")
    [name] = model_names()
    with contextlib.ExitStack() as stack:
        if kind == "real":
            flags = f"--model_name={name}", f"--model_base_path={built / 'autoencoder'}"
            address = stack.enter_context(RealServer(name, *flags)).rest_address
        else:
            address = start_server({name: built / "autoencoder"}, rest_port=0).rest_address
        script = container()["readinessProbe"]["exec"]["command"][-1]
        port = address.rpartition(":")[2]
        for model, expected in ((name, 0), ("nobody", 1)):
            text = script.replace(f"/{REST};", f"/{port};").replace(name, model)
            done = subprocess.run(["bash", "-c", text], timeout=300, check=False)
            assert done.returncode == expected


def test_nothing_runs_as_root_or_writes() -> None:
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert container()["securityContext"]["readOnlyRootFilesystem"] is True
    assert container()["securityContext"]["allowPrivilegeEscalation"] is False
    mounts = {item["name"]: item for item in container()["volumeMounts"]}
    assert mounts["models"]["readOnly"] is True
    service = compose()["services"]["serving"]
    assert service["read_only"] is True and not service["user"].startswith("0")
    assert all(item.endswith(":ro") for item in service["volumes"])


def test_selectors_select_the_pods() -> None:
    found = manifests()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    name = found["Deployment"]["metadata"]["name"]
    assert found["Service"]["spec"]["selector"].items() <= labels.items()
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert found[kind]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == name
    budget = found["PodDisruptionBudget"]["spec"]["minAvailable"]
    assert budget < found["HorizontalPodAutoscaler"]["spec"]["minReplicas"]


def test_the_batching_file_is_one_that_the_server_takes() -> None:
    """It refuses more rows than max_batch_size; allowed sizes and no row end its process."""
    text = (DEPLOY / "batching.config").read_text()
    [largest] = re.findall(r"^max_batch_size \{ value: (\d+) \}$", text, re.MULTILINE)
    assert "allowed_batch_sizes" not in re.sub("#.*", "", text)
    default = inspect.signature(ReconstructionClient).parameters["batch_size"].default
    assert int(largest) >= max(default, 500)


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    # Of these two TensorFlow Serving 2.16.1 exports all that is asked for (SERVING.md); what the
    # embedded server has beside them, mnist_ae:serving:..., nobody else has.
    metrics = Metrics(lambda: {"m": [1]})
    with metrics.counted("m", "GRPC"):
        metrics.count_run("m", 5.0)
    real = set(re.findall(r"^(:tensorflow:[a-z_:]+)\{", metrics.render(), re.MULTILINE))
    gauges = dict.fromkeys(("golden_mse", "served_error_ratio"), 0.1)
    watcher = prometheus.registry(lambda: State(gauges=gauges, serving=1))
    known = real | {sample.name for family in watcher.collect() for sample in family.samples}
    dashboard = json.loads((DEPLOY / "grafana" / "serving.json").read_text())
    titles = {panel["title"] for panel in dashboard["panels"]}
    assert {"Requests a second", "Latency", "Errors a second", "Model version",
            "Mean reconstruction error"} <= titles  # fmt: skip
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose()["services"]
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == source["uid"]
        for target in panel["targets"]:
            asked = set(re.findall(r":[a-z:_]+|mnist_ae[a-z:_]+", target["expr"]))
            assert asked and asked <= known, asked - known
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
