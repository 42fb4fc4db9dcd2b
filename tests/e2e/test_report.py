"""The page of a run, in a real browser, and its figures."""

import json
import os
import pathlib
import re

import pytest

from components.mnist_example_gen import idx
from pipeline import history
from tests import browser
from tests.browser import needs_browser

ALWAYS = (
    "reconstructions", "losses", "training", "errors", "anomalies", "codes", "search", "card", "run"
)  # fmt: skip


def page_of(cli, root, name="simple") -> pathlib.Path:
    done = cli("report", name, "--path", "--root", str(root))
    assert done.returncode == 0, done.stderr
    return pathlib.Path(done.stdout.strip())


def check_page(path: pathlib.Path, sections) -> None:
    """What has to be true of every page, on a phone and on a desk, light and dark."""
    assert path.stat().st_size < 5_000_000
    with browser.open_page(path.as_uri()) as page:
        for width in (390, 1440):
            for dark in (False, True):
                page.resize(width, dark=dark)
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                # No text smaller than people read on a phone; charts scale with the width.
                small = page.evaluate("""
                    [...document.querySelectorAll("body *")].filter(e =>
                        !e.closest("svg") && !e.closest("details:not([open])")
                        && [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())
                        && parseFloat(getComputedStyle(e).fontSize) < 11).map(e => e.outerHTML)""")
                assert small == []
                assert page.evaluate("""
                    [...document.querySelectorAll("svg text")].every(t =>
                        t.getBoundingClientRect().height >= 8)""")
                assert contrast(page, "body") > 4.5
                assert contrast(page, ".lead") > 4.5
        ids = page.evaluate('[...document.querySelectorAll("section")].map(s => s.id)')
        assert set(ids) == set(sections)
        assert page.evaluate("""
            [...document.querySelectorAll("section")].every(s =>
                s.getBoundingClientRect().height > 60)""")
        assert page.evaluate("""
            document.images.length > 5 && [...document.images].every(i =>
                i.complete && i.naturalWidth > 0 && i.alt)""")
        targets = page.evaluate('[...document.querySelectorAll("nav a")].map(a => a.hash.slice(1))')
        assert targets == ids
        assert page.problems == []
        foreign = [r for r in page.requests if not r.startswith("data:")]
        assert foreign == [path.as_uri()]


def contrast(page, selector) -> float:
    """WCAG's contrast ratio of an element's text with the page's ground."""
    colours = page.evaluate(f"""
        [getComputedStyle(document.querySelector("{selector}")).color,
         getComputedStyle(document.body).backgroundColor]""")
    lights = []
    for colour in colours:
        channels = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        lights.append(sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear)))
    return (max(lights) + 0.05) / (min(lights) + 0.05)


@needs_browser
def test_the_page_opens_well_everywhere(trained_run, cli):
    page = page_of(cli, trained_run.root, trained_run.result["run_id"])
    assert str(page) == trained_run.result["report"] and f"report {page}" in trained_run.log
    check_page(page, ALWAYS)


def test_figures_are_those_of_the_metadata_and_of_json(trained_run, cli):
    result = trained_run.result
    text = page_of(cli, trained_run.root, result["run_id"]).read_text(encoding="utf-8")
    shown = {
        name: float(value)
        for name, value in re.findall(r'<data id="figure-(\w+)" value="([^"]*)"', text)
    }
    store = history.open_store(os.path.join(trained_run.root, "metadata.sqlite"))
    properties = history.run(store, result["run_id"]).properties
    assert {"mse", "bce", "pca_mse", "worst_mse", "auroc", "precision_at_10"} <= set(shown)
    for name, value in shown.items():
        assert value == properties[name], name
    metrics = result["metrics"]
    assert shown["mse"] == metrics["overall"]["mse"]
    assert shown["worst_mse"] == max(of["mse"] for of in metrics["by_label"].values())
    assert shown["auroc"] == metrics["anomaly"]["auroc"]
    assert shown["precision_at_10"] == metrics["search"]["precision_at_10"]
    assert shown["latency_ms"] == result["latency_ms"]
    for digit, of in metrics["by_label"].items():
        row = f'<th scope="row">digit {digit}</th><td class="number">{of["mse"]:.5f}</td>'
        assert row in text


def test_pictures_lie_beside_the_page(trained_run, cli):
    folder = page_of(cli, trained_run.root, trained_run.result["run_id"]).parent / "pictures"
    names = {path.stem for path in folder.iterdir()}
    assert {"reconstructions", "losses_by_digit", "codes_tsne", "errors", "search"} <= names
    for path in folder.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_model_card_says_what_was_measured(trained_run, cli):
    done = cli("report", "--card", trained_run.result["run_id"], "--root", str(trained_run.root))
    metrics = trained_run.result["metrics"]
    for words in (
        "## Intended use", "## Limits", "## Versions", "tfx 1.",
        f"{metrics['overall']['mse']:.5f}", f"{metrics['anomaly']['auroc']:.4f}",
        f"| 8 | {metrics['by_label']['8']['mse']:.5f} |",
    ):  # fmt: skip
        assert words in done.stdout


def test_no_run_and_no_such_run_are_said(trained_run, cli, tmp_path):
    done = cli("report", "--root", str(tmp_path))
    assert done.returncode == 2 and "mnist-ae run" in done.stderr
    done = cli("report", "nothing", "--root", str(trained_run.root))
    assert done.returncode == 2 and "'nothing'" in done.stderr and "simple" in done.stderr


def test_figures_of_search_and_detection_can_be_believed(trained_run):
    metrics = trained_run.result["metrics"]
    # Guessing: .1 and .5. An inverted image is the strangest of all.
    assert 0.7 < metrics["search"]["precision_at_10"] < 1
    assert 0.8 < metrics["search"]["pca"]["precision_at_10"] < 0.95
    assert metrics["search"]["queries"] == 500 and metrics["search"]["indexed"] == 4_500
    kinds = metrics["anomaly"]["by_kind"]
    assert set(kinds) == {"inversion", "blur", "noise", "occlusion", "shift", "letters"}
    assert kinds["inversion"]["auroc"] > 0.999
    assert kinds["noise"]["auroc"] > 0.9


EXTRA = {
    "vae": ({"generation"}, ("--set", "trainer.epochs=10", "--set", "trainer.batch_size=32")),
    "supervised_aae": ({"generation", "styles"}, ("--set", "trainer.epochs=2")),
    "denoising": ({"denoising"}, ("--set", "trainer.epochs=2")),
    "best": (set(), ("--set", "trainer.epochs=3")),
    "semi_supervised_aae": (
        {"generation", "styles", "classification"}, ("--set", "trainer.epochs=2")
    ),
}  # fmt: skip


@pytest.mark.e2e
@needs_browser
@pytest.mark.parametrize("model", EXTRA)
def test_the_pages_of_other_models(trained_run, cli, model):
    sections, options = EXTRA[model]
    done = cli(
        "run", "--model", model, "--dataset", "mnist-5k", "--root", str(trained_run.root),
        *options, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_page(page_of(cli, trained_run.root, model), {*ALWAYS, *sections})


@pytest.mark.e2e
@needs_browser
def test_pages_of_images_without_labels(digits, tmp_path, cli):
    for split, prefix in idx.SPLIT_PREFIXES.items():
        idx.write_idx(str(tmp_path / f"{prefix}-{idx.IMAGES}"), digits[split][0][:500])
    root = tmp_path / "runs"
    done = cli(
        "run", "--root", str(root), "--data-dir", str(tmp_path), "--model", "simple", "--json",
        "--set", "trainer.epochs=2",
    )  # fmt: skip
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["search"] is None and metrics["anomaly"]["auroc"] > 0.5
    path = page_of(cli, root)
    check_page(path, ALWAYS)
    text = path.read_text(encoding="utf-8")
    assert text.count("The images have no labels") >= 3
    table = cli("compare", "--root", str(root))
    assert table.returncode == 0 and "simple" in table.stdout
