"""An edit of the code reruns the nodes that run it, and no others."""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest
from tfx.dsl.components.base.base_component import BaseComponent

from pipeline import code_digest, config, nodes
from pipeline.continuous.pipeline import create_continuous_pipeline
from pipeline.pipeline import create_pipeline

# TFX writes the Trainer's module there as soon as a pipeline is made.
ROOT = tempfile.TemporaryDirectory()
PROJECT = pathlib.Path(code_digest.__file__).parent.parent


def references(pipeline, conf):
    return {
        node.id: nodes.references(conf, node)
        for node in pipeline.components
        if isinstance(node, BaseComponent)
    }


@pytest.fixture(scope="module")
def graphs():
    """References by node: of a run with each of two models, tuned, and of a continuous run."""
    found = {}
    for model in ("simple", "vae"):
        conf = config.parse({"root": ROOT.name, "model": model, "tuner": {"enabled": True}})
        found[model] = references(create_pipeline(conf, data_folder="/d"), conf)
    continuous = create_continuous_pipeline(conf, data_folder="/s", golden_folder="/golden")
    found["continuous"] = references(continuous, conf)
    return found


class Installed:
    """A copy of the project elsewhere, as in an image."""

    def __init__(self, folder):
        self.folder = folder
        for name in code_digest.PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(PROJECT / name, folder / name, ignore=ignored)

    def digests(self, graph):
        script = (
            "import json, sys; from pipeline import code_digest;"
            "graph = json.load(sys.stdin); done = {n: code_digest.digest(r) for n, r in "
            "graph.items()}; print(json.dumps([code_digest.__file__, done]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=self.folder,
            input=json.dumps(graph),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        place, found = json.loads(done.stdout)
        assert place.startswith(str(self.folder))
        return found

    def changed(self, graph, edited):
        """The nodes that an edit of a file concerns."""
        before = self.digests(graph)
        path = self.folder / edited
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        after = self.digests(graph)
        path.write_bytes(content)
        return {name for name in graph if before[name] != after[name]}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    return Installed(tmp_path_factory.mktemp("elsewhere"))


def test_the_digest_is_the_same_wherever_the_project_lies(installed, graphs):
    here = {name: code_digest.digest(found) for name, found in graphs["simple"].items()}
    assert installed.digests(graphs["simple"]) == here


def test_every_component_has_its_own_as_a_parameter():
    conf = config.parse({"root": ROOT.name, "model": "simple"})
    for pipeline in (
        create_pipeline(conf, data_folder="/d"),
        create_continuous_pipeline(conf, data_folder="/s", golden_folder="/g"),
    ):
        components = [n for n in pipeline.components if isinstance(n, BaseComponent)]
        codes = {n.id: n.exec_properties[nodes.CODE] for n in components}
        assert len(codes) >= 13 and codes["Trainer"] != codes["ServingValidator"]


@pytest.mark.parametrize(
    "edited, concerned",
    [
        ("components/serving_validator/validation.py", {"ServingValidator", "RunReport"}),
        ("components/report/style.css", {"RunReport"}),
        ("components/report/page.html.j2", {"RunReport"}),
        ("components/preprocessing.py", {"Transform", "Trainer", "Tuner"}),
        ("components/evaluation.py", {"Evaluator", "RunReport"}),
        ("components/data_gate.py", {"DataGate"}),
        # Named in a parameter.
        ("trainer/tuner_fn.py", {"Tuner"}),
        ("trainer/run_fn.py", {"Trainer", "Tuner"}),
        # Of another family.
        ("trainer/models/variational.py", set()),
        ("kubeflow/submit.py", set()),
    ],
)
def test_an_edit_concerns_the_nodes_that_run_it(installed, graphs, edited, concerned):
    assert installed.changed(graphs["simple"], edited) == concerned


def test_an_edit_in_the_contract_or_the_server_reruns_the_validator(installed, graphs):
    for edited in ("serving/contract.py", "serving/launcher.py"):
        assert "ServingValidator" in installed.changed(graphs["simple"], edited)


def test_the_schema_concerns_all_that_reads_examples(installed, graphs):
    changed = installed.changed(graphs["simple"], "components/schema/schema.pbtxt")
    assert {"Trainer", "Evaluator", "DataGate"} <= changed


def test_the_selected_model_is_covered(installed, graphs):
    edited = "trainer/models/variational.py"
    assert installed.changed(graphs["vae"], edited) == {"Trainer", "Tuner"}
    assert installed.changed(graphs["continuous"], edited) == {"Trainer", "Tuner"}


def test_imports_in_functions_and_modules_in_strings_are_found(installed):
    (installed.folder / "components" / "lazy.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from serving import wire\n"
        "else:\n    from serving import contract\n"
        "class A:\n    def b(self):\n        try:\n            from trainer import strategy\n"
        "        finally:\n            return load('trainer.data:Stream')\n"
        '# serving.images is mentioned only, and "serving.rollout is" no name\n'
    )
    script = (
        "from pipeline import code_digest;"
        "print(*code_digest.files(['components.lazy', 'os.path', 'pipeline.nothing']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=installed.folder,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = set(done.stdout.split())
    assert {"components.lazy", "serving.contract", "trainer.strategy", "trainer.data"} <= found
    assert found.isdisjoint({"serving.wire", "serving.images", "serving.rollout"})
    (installed.folder / "components" / "lazy.py").unlink()


def test_workers_of_a_cluster_are_covered():
    conf = config.parse({"root": ROOT.name, "model": "simple"})
    workers = {"launcher": "kubeflow.workers:launch"}
    graph = references(create_pipeline(conf, data_folder="/d", workers=workers), conf)
    assert "kubeflow.workers" in code_digest.files(graph["Trainer"])


def test_it_costs_well_under_half_a_second(graphs):
    script = (
        "import json, sys, time; from pipeline import code_digest;"
        "graph = json.load(sys.stdin); started = time.process_time();"
        "[code_digest.digest(r) for r in graph.values()]; print(time.process_time() - started)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT,
        input=json.dumps(graphs["continuous"]),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("module", ["trainer.run_fn", "components.serving_validator.component"])
def test_nothing_that_is_imported_is_missed(module):
    script = f"import sys, {module}; print(*sys.modules)"
    started = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True
    )
    ours = {n for n in started.stdout.split() if n.split(".")[0] in code_digest.PACKAGES}
    assert ours <= set(code_digest.files([module]))
