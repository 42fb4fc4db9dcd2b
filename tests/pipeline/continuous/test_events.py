import http.server
import json
import sys
import threading

from pipeline.continuous import events


def test_notifications_reach_a_command_and_a_webhook_and_delay_nobody(tmp_path):
    got = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script = tmp_path / "notify.py"
    script.write_text(
        f"import os,sys,pathlib; pathlib.Path({str(tmp_path / 'got')!r}).write_text("
        "os.environ['MNIST_AE_EVENT'] + sys.stdin.read())"
    )
    told = events.Events(
        tmp_path,
        lambda record: None,
        command=f"{sys.executable} {script}",
        url=f"http://127.0.0.1:{server.server_port}/",
    )
    told.tell("wake")
    told.tell("pushed", span="1.1", reason="better")
    told.close()
    server.shutdown()
    assert [e["event"] for e in got] == ["pushed"]
    assert (tmp_path / "got").read_text().startswith('pushed{"time"')
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["wake", "pushed"]
    # A command that ends after all was told: nobody waited for it.
    script.write_text(
        "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)"
    )
    slow = events.Events(
        tmp_path,
        lambda record: None,
        command=f"{sys.executable} {script} {tmp_path / 'go'}",
        url="http://[::1]:1/",
    )
    for _ in range(20):
        slow.tell("pushed")
    (tmp_path / "go").touch()


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / events.LOG_FILE).mkdir()
    said = []
    events.Events(tmp_path, said.append).tell("pushed", span="1.1")
    assert [e["event"] for e in said] == ["pushed"]


def test_an_event_is_a_line_for_people():
    record = {
        "time": "2026-11-21T10:00:00.000+00:00",
        "event": "retry",
        "span": "1.1",
        "tries": 2,
        "run_id": None,
        "reason": "it went wrong",
    }
    assert events.as_text(record) == "2026-11-21 10:00:00 retry span 1.1 tries=2: it went wrong"
