"""The page's head, and how it writes figures for people."""

import pytest

from components.report import page, summary

SUMMARY = {
    "metrics": {
        "overall": {"mse": 0.0123456, "bce": 0.1},
        "by_label": {"3": {"mse": 0.01}, "8": {"mse": 0.02}},
        "pca_mse": 0.02,
        "search": {"precision_at_10": 0.9, "knn_accuracy": 0.95, "pca": {"precision_at_10": 0.8}},
        "anomaly": {"auroc": 0.75, "aupr": 0.5},
        "classification": None,
    },
    "code_size": 1_024,
    "bits_per_pixel": 0.25,
    "parameters": 123_456,
    "model_bytes": 2_500_000,
    "latency_ms": None,
    "training": {"seconds": 75.2, "epochs": 3},
}


def test_tiles_show_what_there_is_and_keep_the_full_value():
    tiles = {tile.name: tile for tile in page.tiles(SUMMARY)}
    assert tiles["mse"].shown == "0.01235" and tiles["mse"].value == 0.0123456
    assert tiles["worst_mse"].title == "worst digit: 8"
    assert tiles["precision_at_10"].note == "PCA: 0.8000"
    assert tiles["code_size"].shown == "1,024" and "0.25 bits" in tiles["code_size"].note
    assert tiles["parameters"].note == "2.5 MB"
    assert tiles["training_seconds"].shown == "1 min 15 s"
    assert not {"accuracy", "latency_ms"} & set(tiles)


def test_runs_are_compared_by_what_they_have():
    found = summary.leaderboard_figures(SUMMARY)
    assert found["worst_digit"] == 8 and found["worst_mse"] == 0.02
    assert found["knn_accuracy"] == 0.95 and found["training_seconds"] == 75.2
    assert "latency_ms" not in found and "accuracy" not in found


@pytest.mark.parametrize(
    "seconds, shown", [(3.21, "3.2 s"), (61, "1 min 1 s"), (3_720, "1 h 2 min")]
)
def test_durations(seconds, shown):
    assert page.duration(seconds) == shown


def test_nested_configurations_have_dotted_keys():
    found = page.flatten({"a": {"b": 1, "c": {}}, "d": None})
    assert found == {"a.b": 1, "a.c": {}, "d": None}
