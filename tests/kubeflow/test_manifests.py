"""The manifests, offline: schemas, and names, ports and folders that agree everywhere."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

import kubeflow
from kubeflow import checks, compiler, workers
from pipeline import config
from pipeline.config import METADATA_PASSWORD
from serving.standin import settings as serving_settings

PROJECT = pathlib.Path(kubeflow.__file__).resolve().parent.parent
MANIFESTS = PROJECT / "kubeflow" / "manifests"
READY = PROJECT / "pipeline" / "configs" / "kubeflow.yaml"
OVERLAYS = [f"overlays/{name}" for name in ("local", "gcs", "gpu", "kserve")]
BUILDABLE = ["base", "beam", "workers", *OVERLAYS]
# Custom resources, whose schemas are not Kubernetes' own: checked by hand below.
CUSTOM = {"InferenceService"}


def built(folder: str) -> list[dict]:
    """What ``kubectl kustomize`` makes of a folder."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        ["kubectl", "kustomize", "--load-restrictor", "LoadRestrictionsNone", MANIFESTS / folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of(things: list[dict], kind: str, name: str = "") -> dict:
    (found,) = [
        t
        for t in things
        if t["kind"] == kind and t["metadata"]["name"] in (name or t["metadata"]["name"],)
    ]
    return found


@pytest.mark.parametrize("folder", BUILDABLE)
def test_it_is_built_and_fits_the_schemas(folder):
    things = built(folder)
    assert things
    for thing in things:
        assert thing["metadata"].get("namespace", "kubeflow") == "kubeflow"
        if thing["kind"] not in CUSTOM:
            kubernetes_validate.validate(thing, "1.29", strict=True)


@pytest.mark.parametrize("file", sorted((MANIFESTS / "examples").iterdir()), ids=lambda p: p.name)
def test_the_examples_fit_the_schemas(file):
    for thing in yaml.safe_load_all(file.read_text()):
        kubernetes_validate.validate(thing, "1.29", strict=True)


def test_a_misspelt_field_would_be_found():
    claim, _ = yaml.safe_load_all((MANIFESTS / "base" / "volume.yaml").read_text())
    claim["spec"]["acessModes"] = claim["spec"].pop("accessModes")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(claim, "1.29", strict=True)


def test_the_ready_made_file_serves_a_continuous_run_too():
    values = config.read(
        str(READY), ["continuous.golden=/mnt/mnist-ae/data/spans/golden/version-1"]
    )
    assert "drift-monitor" in compiler.compile_pipeline(config.parse(values), values)


def test_compiled_file_configuration_and_manifests_agree():
    values = config.read(str(READY))
    parsed = config.parse(values)
    cluster = parsed.kubeflow
    assert (
        cluster
        == config.parse(
            {"model": values["model"], "kubeflow": {"nodes": values["kubeflow"]["nodes"]}}
        ).kubeflow
    ), "the ready-made file repeats the defaults"
    spec, platform = yaml.safe_load_all(compiler.compile_pipeline(parsed, values))
    things = built("base")

    # The claim, and where it is mounted.
    claim = of(things, "PersistentVolumeClaim", cluster.volume_claim)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for executor in executors.values():
        (mount,) = executor["pvcMount"]
        assert mount == {"constant": claim["metadata"]["name"], "mountPath": cluster.mount_path}
        (secret,) = executor["secretAsEnv"]
        assert secret["keyToEnv"] == [{"envVar": METADATA_PASSWORD, "secretKey": "password"}]
        assert secret["secretName"] == "mnist-ae-metadata"

    # Its folders are made, for the user of every pod that writes.
    (maker,) = of(things, "Job", "mnist-ae-volume")["spec"]["template"]["spec"]["containers"]
    script = maker["command"][-1]
    for folder in (cluster.data_dir, cluster.pipeline_root, cluster.push_dir):
        assert script.split("; ")[1].split()[2:].count(pathlib.PurePosixPath(folder).name) == 1
    (owner,) = re.findall(r"^USER (.*)$", dockerfile(), re.M)
    assert f"chown {owner} data models pipeline" in script

    # The database: user, host, port and name of the address; the secret.
    database = of(things, "StatefulSet", "mnist-ae-metadata")
    (container,) = database["spec"]["template"]["spec"]["containers"]
    environment = {e["name"]: e for e in container["env"]}
    service = of(things, "Service", "mnist-ae-metadata")
    user, host, port, name = re.fullmatch(
        r"mysql://([^@]+)@([^:]+):(\d+)/(\w+)", cluster.metadata_url
    ).groups()
    assert environment["MYSQL_USER"]["value"] == user
    assert environment["MYSQL_DATABASE"]["value"] == name
    assert environment["MYSQL_PASSWORD"]["valueFrom"]["secretKeyRef"] == {
        "name": "mnist-ae-metadata",
        "key": "password",
    }
    assert service["metadata"]["name"] == host
    assert service["spec"]["ports"][0]["port"] == int(port)

    copier = yaml.safe_load((MANIFESTS / "examples" / "copy.yaml").read_text())
    assert f"{copier['spec']['securityContext']['runAsUser']}:1000" == owner

    # What is pushed is what is served: the folder on the claim, the model's name.
    deployment = of(things, "Deployment", "mnist-ae-serving")
    pod = deployment["spec"]["template"]["spec"]
    mounts = {m["name"]: m for m in pod["containers"][0]["volumeMounts"]}
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] == cluster.volume_claim
    (start,) = pod["initContainers"]
    pushed = pathlib.PurePosixPath(cluster.mount_path) / mounts["models"]["subPath"]
    assert str(pushed) == cluster.push_dir
    # The configuration begins there, too; the folder is made by who may write in it.
    (volume,) = [m for m in start["volumeMounts"] if m["name"] == "models"]
    (models_folder,) = [e["value"] for e in start["env"]]
    assert models_folder == f"{volume['mountPath']}/{mounts['models']['subPath']}"
    rollout = yaml.safe_load((MANIFESTS / "examples" / "rollout.yaml").read_text())
    (mover,) = rollout["spec"]["template"]["spec"]["containers"]
    assert mover["volumeMounts"] == [{"name": "models", "mountPath": cluster.mount_path}]
    assert f"--model={cluster.push_dir}/{parsed.servable}" in mover["args"]
    serving = of(things, "Service", "mnist-ae-serving")
    ports = {port["name"]: port["port"] for port in serving["spec"]["ports"]}
    assert f"--target={serving['metadata']['name']}:{ports['grpc']}" in mover["args"]
    # Headless: every pod has an address behind the name.
    assert serving["spec"]["clusterIP"] == "None"
    maps = [t for t in things if t["kind"] == "ConfigMap"]
    models = serving_settings.parse_models(maps[0]["data"]["models.config"], "models.config")
    assert list(models) == [parsed.servable] == ["best"]
    base_path = models[parsed.servable].base_path
    assert base_path == f"{mounts['models']['mountPath']}/{parsed.servable}"

    # One image, in every task and beside Flink.
    images = {e["container"]["image"] for e in spec["deploymentSpec"]["executors"].values()}
    beam = of(built("beam"), "Deployment", "mnist-ae-flink-taskmanager")
    pool = beam["spec"]["template"]["spec"]["containers"][1]
    example = yaml.safe_load((MANIFESTS / "examples" / "recurring-run.yaml").read_text())
    schedule = example["spec"]["template"]["spec"]["containers"][0]
    assert images == {cluster.image} == {pool["image"]} == {schedule["image"]} == {mover["image"]}
    account = of(things, "ServiceAccount")["metadata"]["name"]
    assert f"--service-account={account}" in schedule["args"]
    defaults = spec["root"]["inputDefinitions"]["parameters"]
    assert defaults["push_dir"]["defaultValue"] == cluster.push_dir


def test_workers_reach_each_other_on_every_port_and_nobody_else_does():
    policy = of(built("workers"), "NetworkPolicy", "mnist-ae-workers")
    workers_only = {"matchLabels": {"app.kubernetes.io/name": workers.LABEL}}
    assert policy["spec"]["podSelector"] == workers_only
    # NCCL takes ports of its own.
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": workers_only}]}]


def test_nothing_but_runs_gives_flink_code_to_run():
    things = built("beam")
    runs = {
        "podSelector": {
            "matchExpressions": [{"key": "workflows.argoproj.io/workflow", "operator": "Exists"}]
        }
    }
    flink, jobs = (
        {"podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}}
        for name in ("mnist-ae-flink", "mnist-ae-beam-jobs")
    )
    policies = {
        policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"]: policy["spec"]
        for policy in things
        if policy["kind"] == "NetworkPolicy"
    }
    for thing in things:
        if thing["kind"] == "Deployment":
            name = thing["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
            assert name in policies
    assert policies["mnist-ae-flink"]["ingress"] == [{"from": [flink, jobs]}]
    assert policies["mnist-ae-beam-jobs"]["ingress"] == [{"from": [flink, runs]}]


def allowed_by(role: dict) -> set[tuple[str, str]]:
    """Resource and verb of everything that a role allows without naming an object."""
    return {
        (resource, verb)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if "resourceNames" not in rule
    }


def test_a_run_may_start_pods_of_its_own_only_where_workers_are_configured():
    runner = allowed_by(of(built("base"), "Role"))
    assert not {r for r, verb in runner if verb in ("create", "delete")} - {"workflowtaskresults"}
    things = built("workers")
    trainer = allowed_by(of(things, "Role"))
    kinds = ("jobs", "services", "tfjobs")
    assert {(kind, verb) for kind in kinds for verb in ("create", "delete")} <= trainer
    assert {resource for resource, _ in trainer} == set(kinds)
    assert of(things, "RoleBinding")["subjects"] == of(built("base"), "RoleBinding")["subjects"]
    assert not {pair for pair in runner | trainer if "*" in pair or "secrets" in pair}


def test_kserve_serves_the_pushed_folder_instead_of_the_deployment():
    things = built("overlays/kserve")
    service = of(things, "InferenceService")
    parsed = config.load(str(READY))
    assert service["metadata"]["name"] == parsed.servable
    folder = pathlib.PurePosixPath(parsed.kubeflow.push_dir).name
    storage = service["spec"]["predictor"]["model"]["storageUri"]
    assert storage == f"pvc://{parsed.kubeflow.volume_claim}/{folder}/{parsed.servable}"
    assert not [t for t in things if t["kind"] == "Deployment"]


def test_of_a_bucket_only_the_configuration_is_on_the_volume():
    things = built("overlays/gcs")
    pod = of(things, "Deployment", "mnist-ae-serving")["spec"]["template"]["spec"]
    assert "--model_config_file=/models/models.config" in pod["containers"][0]["args"]
    assert "models" in {v["name"] for v in pod["volumes"]}
    (start,) = [t for t in things if t["kind"] == "ConfigMap"]
    models = serving_settings.parse_models(start["data"]["models.config"], "models.config")
    assert [m.base_path for m in models.values()] == ["gs://BUCKET/models/best"]


def test_the_options_for_flink_are_those_of_its_manifests():
    text = (MANIFESTS / "beam" / "kustomization.yaml").read_text()
    commented = "\n".join(
        line[2:] for line in text.splitlines() if line.startswith("#   ") or line == "#   beam:"
    )
    parsed = config.parse(yaml.safe_load(commented))
    checks.check(parsed)
    things = built("beam")
    service = of(things, "Service", "mnist-ae-beam-jobs")
    ports = {p["port"] for p in service["spec"]["ports"]}
    for key in ("job_endpoint", "artifact_endpoint"):
        host, port = str(parsed.beam[key]).split(":")
        assert host == service["metadata"]["name"] and int(port) in ports
    pool = of(things, "Deployment", "mnist-ae-flink-taskmanager")["spec"]["template"]["spec"]
    port = str(parsed.beam["environment_config"]).split(":")[1]
    assert f"--service_port={port}" in pool["containers"][1]["args"]


def dockerfile() -> str:
    return (PROJECT / "kubeflow" / "Dockerfile").read_text()


def test_the_dockerfile_is_clean():
    hadolint = pathlib.Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, PROJECT / "kubeflow" / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_image_runs_as_nobody_in_particular():
    (user,) = re.findall(r"^USER (.*)$", dockerfile(), re.M)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_everything_that_the_dockerfile_copies_is_there_and_not_ignored():
    ignored = (PROJECT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile(), re.M):
        *sources, _ = line.split()
        for source in sources:
            for variant in ("cpu", "gpu"):
                path = source.replace("${VARIANT}", variant)
                assert (PROJECT / path).exists(), path
                assert f"!{path.split('/')[0]}" in ignored
