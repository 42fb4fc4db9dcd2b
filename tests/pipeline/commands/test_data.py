"""``mnist-ae data``."""

import json


def test_data_shows_what_would_be_used(invoke, digits_folder, monkeypatch):
    found = json.loads(invoke("data", "--json", "--data-dir", digits_folder).stdout)
    assert (found["name"], found["folder"]) == ("mnist-5k", str(digits_folder))
    assert found["splits"]["train"]["count"] == 4_500
    monkeypatch.setenv("MNIST_DATA_DIR", str(digits_folder))
    assert json.loads(invoke("data", "--json").stdout)["origin"].startswith("folder")
    monkeypatch.delenv("MNIST_DATA_DIR")
    assert "4,500 train and 500 eval" in invoke("data", "--dataset", "mnist-5k").stdout


def test_a_bad_data_set_is_refused(invoke, tmp_path):
    done = invoke("data", "--dataset", "x")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "mnist-5k" in done.stderr
    done = invoke("data", "--data-dir", tmp_path / "nope")
    assert done.exit_code == 2 and "nope" in done.stderr
