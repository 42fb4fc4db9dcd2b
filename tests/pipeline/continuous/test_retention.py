"""What is removed from the disk; tests/e2e/test_month.py has the artifacts of real runs."""

import pytest

from pipeline import config, history
from pipeline.continuous import retention
from serving import locate


@pytest.fixture
def make(tmp_path):
    for version in range(1, 8):
        (tmp_path / "serving" / "simple" / str(version)).mkdir(parents=True)
    (tmp_path / "serving" / "simple" / "notes").mkdir()

    def make_one(**continuous):
        return config.parse({"root": str(tmp_path), "model": "simple", "continuous": continuous})

    return make_one


def versions(folder):
    return sorted(
        int(p.name) for p in (folder / "serving" / "simple").iterdir() if p.name.isdigit()
    )


def test_the_newest_versions_and_those_with_a_label_stay(make, tmp_path):
    conf = make(keep_versions=2)
    locate.config_path(tmp_path).write_text(
        'model_config_list { config { name: "simple" base_path: "/m" model_platform: "tensorflow" '
        "model_version_policy { specific { versions: 3 } } "
        'version_labels { key: "stable" value: 3 } version_labels { key: "canary" value: 4 } } }'
    )
    retention.clean(conf)
    assert versions(tmp_path) == [3, 4, 6, 7]
    assert (tmp_path / "serving" / "simple" / "notes").is_dir()


def test_without_a_readable_configuration_no_version_is_removed(make, tmp_path):
    locate.config_path(tmp_path).write_text("no models.config")
    retention.clean(make(keep_versions=1))
    assert versions(tmp_path) == [1, 2, 3, 4, 5, 6, 7]


def test_old_logs_go(make, tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    for number in range(120):
        (logs / f"watch-{number:03d}.log").write_text("-")
    (logs / "20260101.log").write_text("of mnist-ae run")
    retention.clean(make())
    left = sorted(p.name for p in logs.glob("watch-*"))
    assert len(left) == 100 and left[0] == "watch-020.log"
    assert (logs / "20260101.log").exists()
    assert not (tmp_path / history.metadata_path("x")).exists()
