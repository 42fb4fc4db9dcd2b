import contextlib
import os

import numpy as np

from pipeline.continuous import spans, state
from serving import locate
from tests import loopback
from tests.pipeline.continuous import test_watcher

root = test_watcher.root
make, statuses = test_watcher.make, test_watcher.statuses


def leave(folder, images, name):
    """As a client leaves its samples."""
    place = folder / locate.SAMPLES
    place.mkdir(exist_ok=True)
    np.save(place / f".{name}.npy", images)
    os.rename(place / f".{name}.npy", place / f"{name}.npy")


def left(folder):
    return sorted(p.name for p in (folder / locate.SAMPLES).iterdir())


@contextlib.contextmanager
def served_metrics(text):
    """A server's metrics; ``text`` is a list that holds the current ones."""

    class Page(loopback.Handler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text[-1].encode())

    with loopback.served(Page) as url:
        yield f"{url}/"


def test_enough_samples_make_a_span_of_their_own(root, digits):
    images = digits["train"][0]
    leave(root, images[:30], "1")
    watch = make(root, sample_images=50)
    watch.once()
    assert statuses(root) == {} and left(root) == ["1.npy"]
    leave(root, images[30:60], "2")
    (root / locate.SAMPLES / "3.npy").write_bytes(b"not an array")
    watch.once()
    assert statuses(root) == {"1.1": "pushed"}
    (manifest,) = spans.scan(root)
    assert (manifest.count, manifest.labelled, manifest.source["kind"]) == (60, False, "served")
    assert "1.npy" not in left(root) and "2.npy" not in left(root)


def test_a_kill_while_the_span_is_made_makes_it_once(root, digits, monkeypatch):
    leave(root, digits["train"][0][:60], "1")
    watch = make(root, sample_images=50)
    publish = spans.publish

    def killed(*arguments, **options):
        publish(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(spans, "publish", killed)
    with contextlib.suppress(KeyboardInterrupt):
        watch.once()
    monkeypatch.undo()
    leave(root, digits["train"][0][60:70], "2")
    make(root, sample_images=50).once()
    assert statuses(root) == {"1.1": "pushed"}
    assert left(root) == ["2.npy"]


def exposition(total, count, model="simple"):
    name = "mnist_ae:serving:reconstruction_error"
    label = f'{{model_name="{model}"}}'
    return f"{name}_sum{label} {total}\n{name}_count{label} {count}\n"


def test_a_rising_served_error_starts_a_run_early(root, digits):
    said = []
    known = state.State(
        spans={
            "1.1": {"status": "pushed", "decided": 1.0, "golden": {"before": None, "after": 0.01}}
        }
    )
    state.write(root, known)
    test_watcher.publish(root, digits, 0)
    leave(root, digits["train"][0][100:130], "1")  # too few to train on, whatever the error
    text = [exposition(10.0, 1_000)]
    with served_metrics(text) as url:
        watch = make(root, said, metrics_url=url, sample_images=480)
        watch.once()
        text.append(exposition(12.2, 1_200))  # .011 an image: as usual
        watch.once()
        text.append(exposition(12.3, 1_202))  # too few to say
        watch.once()
        assert [e for e in said if e["event"] in ("served_error", "sampled")] == []
        text.append(exposition(16.2, 1_400))  # .02 an image
        watch.once()
        assert statuses(root) == {"1.1": "pushed"}
        text.append(exposition(18.4, 1_600))  # as usual
        watch.once()
        leave(root, digits["train"][0][130:230], "2")
        watch.once()
        assert statuses(root) == {"1.1": "pushed"}
        text.append(exposition(2.0, 200))  # a server that was started anew, .01 an image
        text.append(exposition(6.2, 400))  # .021
        watch.once()
    assert [e["event"] for e in said if "served" in e["event"] or "sampled" in e["event"]] == [
        "served_error",
        "served_error",
        "sampled",
    ]
    assert statuses(root)["2.1"] == "pushed"


def test_a_server_that_counts_no_errors_is_told_once(root, digits):
    said = []
    text = [':tensorflow:serving:request_count{model_name="simple",status="OK"} 5\n']
    with served_metrics(text) as url:
        watch = make(root, said, metrics_url=url)
        for _ in range(3):
            watch.once()
        text.append(exposition(1.0, 100))
        watch.once()
        text.append("")
        watch.once()
    assert [e["event"] for e in said].count("no_served_errors") == 2
