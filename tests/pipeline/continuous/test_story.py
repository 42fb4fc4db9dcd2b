import json

from pipeline.continuous import spans, state, story
from tests.pipeline.continuous import test_watcher

root = test_watcher.root
publish = test_watcher.publish

PUSHED = {
    "status": "pushed",
    "reason": "better",
    "decided": 2.0,
    "pushed_version": "7",
    "golden": {"before": 0.02, "after": 0.01},
    "newest_span": {"before": None, "after": 0.02},
    "drift": {"distance": 0.125},
    "run_id": "r-1",
}


def told(root, digits):
    publish(root, digits, 0, 1)
    publish(root, digits, 1, 4)
    known = state.State(spans={"1.1": PUSHED, "4.1": {"status": "refused", "decided": 1.0}})
    state.write(root, known)
    return known


def test_a_story_is_plain_data_span_by_span(root, digits):
    known = told(root, digits)
    found = json.loads(json.dumps(story.tell(str(root))))
    assert found["gaps"] == [2, 3] and found["serving"] is None
    first, second = found["spans"]
    assert (first["span"], first["status"], first["golden"]["after"]) == (1, "pushed", 0.01)
    assert second["status"] == "refused" and second["golden"] is None
    assert story.last(known) == {"span": "1.1", "status": "pushed", "reason": "better"}
    assert story.last(state.State()) is None
    rows = story.span_rows(spans.scan(root), known)
    assert [row["drift"] for row in rows] == [0.125, None]


def test_a_story_is_a_table_and_a_page(root, digits, tmp_path, capsys):
    told(root, digits)
    found = story.tell(str(root))
    story.show(found)
    table = capsys.readouterr().out
    assert "gap: no span 2, 3" in table and "0.02000 > 0.01000" in table
    story.write_page(found, str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 3 and "1.1" in page and "http" not in page
