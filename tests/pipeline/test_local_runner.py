"""The local runner, on a pipeline of two small components."""

# No postponed annotations here: @component reads them.
import errno
import os

import pytest
from tfx.dsl.compiler import compiler
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.orchestration import metadata, pipeline
from tfx.types import standard_artifacts

from pipeline import config, history, local_runner
from pipeline.errors import RunError, UserError


class StrangeError(UserError):
    exit_code = 7


@component
def Judge(blessing: OutputArtifact[standard_artifacts.InfraBlessing], plan: Parameter[str]) -> None:
    """Does what the plan says."""
    with open(plan) as f:
        word = f.read()
    if word == "disk":
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as e:
            raise RuntimeError("wrapped by Beam") from e
    if word == "strange":
        raise StrangeError("the user can put it right")
    if word == "fail":
        raise ValueError("first line\nsecond line")
    os.makedirs(blessing.uri, exist_ok=True)
    blessing.set_int_custom_property("blessed", int(word == "bless"))
    if word.startswith("refuse for "):
        blessing.set_string_custom_property("refused_for", word.removeprefix("refuse for "))


@component
def Heed(blessing: InputArtifact[standard_artifacts.InfraBlessing]) -> None:
    """Reads the blessing."""


class Place:
    """A root, and what the pipeline in it is to do."""

    def __init__(self, folder):
        self.config = config.parse({"root": str(folder)})
        self.plan = folder / "plan"
        self.runs = 0

    def run(self, what, until=lambda node_id: False):
        self.plan.write_text(what)
        self.runs += 1
        local_runner.recover(self.config)
        judge = Judge(plan=str(self.plan))
        heed = Heed(blessing=judge.outputs["blessing"])
        path = history.metadata_path(self.config.root)
        ir = compiler.Compiler().compile(
            pipeline.Pipeline(
                pipeline_name="small",
                pipeline_root=history.artifacts_folder(self.config.root),
                components=[judge, heed],
                enable_cache=True,
                metadata_connection_config=metadata.sqlite_metadata_connection_config(path),
            )
        )
        timings = local_runner.launch(ir, f"run-{self.runs}", until=until)
        return {timing.id: timing.cached for timing in timings}

    @property
    def store(self):
        return history.open_store(history.metadata_path(self.config.root))


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_what_was_computed_from_the_same_input_is_used_again(place):
    assert place.run("bless") == {"Judge": False, "Heed": False}
    assert place.run("bless") == {"Judge": True, "Heed": True}


def test_a_run_can_end_after_any_component(place):
    assert place.run("bless", until=lambda node_id: node_id == "Judge") == {"Judge": False}


@pytest.mark.parametrize("reason, cached", [("latency", False), ("", True)])
def test_a_refusal_for_latency_is_never_answered_from_the_cache(place, reason, cached):
    place.run(f"refuse for {reason}" if reason else "refuse")
    assert place.run("bless")["Judge"] is cached
    # What was refused is still known.
    first = history.run_outputs(place.store, "run-1", "InfraBlessing")[0]
    assert first.custom_properties["blessed"].int_value == 0
    assert place.run("refuse")["Judge"] is True


@pytest.mark.parametrize(
    "what, kind, code, text",
    [
        ("fail", RunError, 1, "Judge failed: ValueError: first line"),
        ("disk", UserError, 2, "Judge failed: no space left on the disk"),
        ("strange", StrangeError, 7, "the user can put it right"),
    ],
)
def test_a_component_that_fails_is_named_in_one_line(place, what, kind, code, text):
    with pytest.raises(kind, match=text) as caught:
        place.run(what)
    assert caught.value.exit_code == code and "\n" not in str(caught.value)
    assert history.run(place.store, "run-1").state == "failed"
    # It is tried again, not remembered.
    assert place.run("bless") == {"Judge": False, "Heed": False}


def test_what_a_killed_run_left_is_removed_and_marked(place):
    place.run("bless")
    execution = history.node_executions(place.store, "run-1", "Judge")[-1]
    execution.last_known_state = execution.RUNNING
    place.store.put_executions([execution])
    (blessing,) = history.run_outputs(place.store, "run-1", "InfraBlessing")
    assert os.path.isdir(blessing.uri)
    local_runner.recover(place.config)
    assert not os.path.exists(blessing.uri)
    assert history.run(place.store, "run-1").state == "failed"
    assert place.run("bless")["Judge"] is False


def test_elsewhere_a_verdict_that_nobody_has_read_is_left_to_its_run(place):
    place.run("refuse for latency", until=lambda node_id: node_id == "Judge")
    assert history.forget_refusals(place.store, in_use_for=60.0) == 0
    # Its age, or a reader, says that nobody waits for it.
    place.run("refuse for latency")
    assert history.forget_refusals(place.store, in_use_for=60.0) == 1
    assert history.forget_refusals(place.store) == 0
