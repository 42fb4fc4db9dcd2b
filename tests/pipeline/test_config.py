import pytest

from pipeline import beam_options, config
from pipeline.errors import UserError


def load(*assignments, path=None):
    return config.load(path, assignments)


def test_the_defaults_are_complete():
    loaded = load()
    assert None not in loaded.trainer.model_dump().values()
    assert loaded.servable == loaded.model.name


def test_a_file_and_assignments_fill_the_same_fields(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: conv\ntrainer: {epochs: 4, seed: 7}\nbeam: {direct_num_workers: 2}\n")
    loaded = load("trainer.epochs=5", "model.filters=[4, 4, 4]", path=str(path))
    assert loaded.model.name == "conv"
    assert loaded.model.hyperparameters.filters == (4, 4, 4)
    assert (loaded.trainer.epochs, loaded.trainer.seed) == (5, 7)
    assert beam_options.flags(loaded.beam) == ["--direct_num_workers=2"]


def test_a_model_named_last_keeps_what_was_set_before():
    loaded = load("model.code_size=8", "model=simple")
    assert loaded.model.hyperparameters.code_size == 8


def test_numbers_are_read_as_people_write_them():
    assert load("trainer.learning_rate=1e-3").trainer.learning_rate == 0.001
    assert load("trainer.learning_rate=1").trainer.learning_rate == 1.0


def test_one_class_models_are_served_under_a_name_of_their_own():
    assert load("data.keep_labels=[3]").servable.endswith("-only-3")
    dropped = load("data.drop_labels=[0, 1]")
    assert dropped.data.kept() == (2, 3, 4, 5, 6, 7, 8, 9)


def test_beam_flags():
    loaded = load(
        "beam.runner=FlinkRunner",
        "beam.experiments=[a, b]",
        "beam.streaming=true",
        "beam.off=false",
    )
    assert beam_options.flags(loaded.beam) == [
        "--runner=FlinkRunner",
        "--experiments=a",
        "--experiments=b",
        "--streaming",
    ]


@pytest.mark.parametrize(
    "assignment, words",
    [
        ("trainer.epohcs=3", ["trainer.epohcs", "did you mean 'trainer.epochs'"]),
        ("modle=simple", ["'modle'", "did you mean 'model'"]),
        ("model=simpel", ["'simpel'", "did you mean 'simple'"]),
        (
            "model.code=3",
            [f"model '{config.DEFAULT_MODEL}'", "model.code", "did you mean 'model.code_size'"],
        ),
        ("model.code_size=-1", [f"model '{config.DEFAULT_MODEL}'", "model.code_size", "-1"]),
        ("model.code_size=1.5", ["model.code_size", "1.5"]),
        ("model.code_size=many", ["model.code_size", "'many'"]),
        ("trainer.epochs=-1", ["trainer.epochs", "-1"]),
        ("trainer.epochs=0", ["trainer.epochs"]),
        ("trainer.epochs=true", ["trainer.epochs", "True"]),
        ("trainer.strategy=mirorred", ["trainer.strategy", "did you mean 'mirrored'"]),
        ("trainer.learning_rate=.nan", ["trainer.learning_rate"]),
        ("trainer.learning_rate=.inf", ["trainer.learning_rate"]),
        ("trainer.validation_fraction=1.0", ["trainer.validation_fraction"]),
        ("data.dataset=mnits", ["data.dataset", "did you mean 'mnist'"]),
        ("data.keep_labels=[10]", ["data.keep_labels", "10"]),
        ("data.keep_labels=[]", ["no digit"]),
        ("data.keep_labels=3", ["data.keep_labels"]),
        ("evaluator.max_increase=-0.1", ["evaluator.max_increase"]),
        ("pusher.name=../x", ["pusher.name"]),
        ("trainer=5", ["trainer", "mapping"]),
        ("root=5", ["root"]),
        ("epochs", ["KEY=VALUE"]),
        ("trainer.epochs=[", ["not YAML"]),
        ("trainer.epochs.x=1", ["trainer.epochs"]),
    ],
)
def test_a_mistake_is_named_with_the_nearest_right_thing(assignment, words):
    with pytest.raises(UserError) as error:
        load(assignment)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "content, words",
    [
        ("a: [1, 2", ["not YAML", "line"]),
        ("- 1\n- 2\n", ["mapping"]),
        ("just text", ["mapping"]),
        ("\x00\x01", ["not YAML"]),
        ("trainer: {epochs: x}", ["trainer.epochs"]),
        ("model: {name: nope}", ["'nope'"]),
        ("data: null", ["data"]),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, content, words):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        load(path=str(path))
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml: cannot be read"):
        load(path=str(tmp_path / "nowhere.yaml"))
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(UserError, match="not YAML"):
        load(path=str(path))
    with pytest.raises(UserError, match="cannot be read"):
        load(path=str(tmp_path))


def test_the_ready_made_configurations_are_valid():
    import pathlib

    folder = pathlib.Path(config.__file__).parent / "configs"
    found = sorted(folder.glob("*.yaml"))
    assert found
    for path in found:
        load(path=str(path))


def test_more_labels_than_there_are_are_refused_by_model_and_field():
    loaded = load("model=semi_supervised_aae", "model.labels=5000")
    config.check_labels(loaded, 5_000)
    with pytest.raises(UserError, match="'semi_supervised_aae', model.labels: 5,000.*4,275"):
        config.check_labels(loaded, 4_275)
    with pytest.raises(UserError, match="'supervised_aae' learns from labels"):
        config.check_labels(load("model=supervised_aae"), 0)
    config.check_labels(load("model=simple"), 0)
