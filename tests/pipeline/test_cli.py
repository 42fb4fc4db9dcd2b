"""The root of the command line: what it lists, how it refuses, how it ends."""

import os
import pathlib
import re
import resource
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from components.mnist_example_gen import idx
from pipeline.cli import COMMANDS, mnist_ae

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def processor_seconds(call):
    """What the processes of a call take of the processor, whatever else is running; best of 3."""
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        call()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["models"], ["models", "--json"], ["run", "--set", "trainer.epohcs=1"]],
    ids=" ".join,
)
def test_what_needs_no_tensorflow_answers_at_once(cli, arguments):
    said = cli(*arguments, PYTHONPROFILEIMPORTTIME="1").stderr
    imported = {line.rpartition("|")[2].strip() for line in said.splitlines()}
    assert "click" in imported
    # What takes a second and more each.
    assert not imported & {"tensorflow", "tfx", "apache_beam", "pandas", "kfp", "matplotlib"}
    click_alone = processor_seconds(lambda: subprocess.run([sys.executable, "-c", "import click"]))
    seconds = processor_seconds(lambda: cli(*arguments))
    # At most three to five times as long; TensorFlow alone takes twenty-five.
    assert seconds < 10 * click_alone


def test_the_help_of_a_command_imports_nothing_that_it_works_with():
    program = (
        "import contextlib, io, sys\n"
        "from pipeline import cli\n"
        f"for name in {list(COMMANDS)}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        assert cli.main([name, '--help']) == 0\n"
        "    heavy = {'numpy', 'pydantic', 'yaml', 'tensorflow'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} imported {heavy}'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["rnu"]], ids=" ".join)
def test_the_list_of_commands_imports_none_of_them(arguments):
    program = (
        "import sys; from pipeline import cli\n"
        f"cli.main({arguments})\n"
        "known = {'pipeline', 'pipeline.cli', 'pipeline.commands', 'pipeline.commands.group',"
        " 'serving', 'serving.errors'}\n"
        "ours = ('pipeline', 'components', 'trainer', 'serving', 'kubeflow')\n"
        "loaded = {name for name in sys.modules if name.split('.')[0] in ours} - known\n"
        "heavy = {'numpy', 'pydantic', 'rich', 'yaml', 'tensorflow'} & set(sys.modules)\n"
        "sys.exit(f'imported {loaded | heavy}' if loaded | heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    context = click.Context(group)
    found = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found.append((*path, name))
        if isinstance(command, click.Group):
            found += commands(command, (*path, name))
    return found


@pytest.mark.parametrize("path", commands(mnist_ae), ids=" ".join)
def test_every_command_explains_itself_and_each_of_its_options(path):
    runner = CliRunner()
    done = runner.invoke(mnist_ae, [*path, "--help"])
    assert done.exit_code == 0, done.output
    command: click.Command = mnist_ae
    for name in path:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), name)
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help, option.name
            assert all(spelling in done.stdout for spelling in option.opts)
    assert runner.invoke(mnist_ae, [*path, "-h"]).stdout == done.stdout


def test_the_readme_lists_every_command():
    text = (REPOSITORY / "README.md").read_text()
    listed = re.findall(r"`(?:mnist-ae )?([a-z]+)`", text)
    assert set(mnist_ae.list_commands(click.Context(mnist_ae))) <= set(listed)


def no_images(folder):
    (folder / f"train-{idx.LABELS}").write_bytes(b"")
    return ["run", "--data-dir", str(folder)]


def config_file(folder):
    path = folder / "c.yaml"
    path.write_text("model: [")
    return ["run", "--config", str(path)]


def root_is_a_file(folder):
    (folder / "file").write_text("")
    return ["run", "--dataset", "mnist-5k", "--root", str(folder / "file" / "runs")]


MISTAKES = {
    "no command": (lambda f: [], "COMMAND"),
    "unknown command": (lambda f: ["rnu"], "unknown command 'rnu'; did you mean 'run'?"),
    "unknown option": (lambda f: ["run", "--modle", "simple"], "did you mean '--model'?"),
    "unknown option of the root": (lambda f: ["--model", "simple"], "--model"),
    "no value": (lambda f: ["run", "--model"], "see 'mnist-ae run --help'"),
    "a value for a flag": (lambda f: ["run", "--tune=3"], "--tune"),
    "one argument too many": (lambda f: ["run", "extra"], "extra"),
    "missing argument": (lambda f: ["predict"], "IMAGE"),
    "missing option": (lambda f: ["compress", "x.png"], "--out"),
    "no number": (lambda f: ["generate", "--n", "x"], "'x' is not a valid integer"),
    "out of bounds": (lambda f: ["serve", "--port", "99999"], "99999"),
    "not a number": (lambda f: ["watch", "--interval", "nan"], "--interval"),
    "no port": (lambda f: ["watch", "--metrics-port", "70000"], "70000"),
    "an open quote": (lambda f: ["watch", "--submit", "'"], "No closing quotation"),
    "an open quote in a value": (
        lambda f: ["watch", "--set", 'continuous.notify_command="say \'yes"'],
        "notify_command",
    ),
    "no time": (
        lambda f: ["kubeflow", "status", "r", "--host", "http://h", "--timeout", "0"],
        "--timeout",
    ),
    "less than no time": (
        lambda f: ["kubeflow", "wait", "r", "--host", "http://h", "--interval", "-1"],
        "--interval",
    ),
    "endless": (lambda f: ["watch", "--interval", "inf"], "--interval"),
    "unknown choice": (lambda f: ["serve", "--backend", "cloud"], "'embedded'"),
    "no action": (lambda f: ["rollout"], "missing ACTION; see 'mnist-ae rollout --help'"),
    "unknown action": (lambda f: ["rollout", "canry", "3"], "did you mean 'canary'?"),
    "unknown option of an action": (lambda f: ["rollout", "list", "--modle"], "'--model'"),
    "both triggers": (
        lambda f: ["kubeflow", "schedule", "--host", "http://h", "--cron", "x", "--every", "1d"],
        "one of --cron and --every",
    ),
    "unknown model": (lambda f: ["run", "--model", "simpel"], "'simple'"),
    "unknown model of several": (lambda f: ["run", "--model", "simple,simpel"], "'simple'"),
    "unknown dataset": (lambda f: ["run", "--dataset", "mnits"], "'mnist'"),
    "unknown key": (lambda f: ["run", "--set", "trainer.epohcs=1"], "trainer.epochs"),
    "negative epochs": (lambda f: ["run", "--set", "trainer.epochs=-5"], "trainer.epochs"),
    "wrong type": (lambda f: ["run", "--set", "trainer.epochs=ten"], "trainer.epochs"),
    "strategy": (lambda f: ["run", "--set", "trainer.strategy=mirror"], "'mirrored'"),
    "no yaml": (config_file, "not YAML"),
    "missing config": (lambda f: ["run", "--config", str(f / "nope")], "cannot be read"),
    "missing folder": (lambda f: ["run", "--data-dir", str(f / "nope")], "nope"),
    "folder without files": (lambda f: ["run", "--data-dir", str(f)], "train-*"),
    "folder without images": (no_images, "train-*"),
    "data of an unknown set": (lambda f: ["data", "--dataset", "x"], "mnist-5k"),
    "root in a file": (root_is_a_file, "cannot be written"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_and_nothing_is_written(
    tmp_path, monkeypatch, mistake
):
    make, words = MISTAKES[mistake]
    (tmp_path / "data").mkdir()
    root = tmp_path / "runs"
    monkeypatch.delenv("MNIST_DATA_DIR", raising=False)
    done = CliRunner(env={"MNIST_AE_ROOT": str(root)}).invoke(mnist_ae, make(tmp_path / "data"))
    assert done.exit_code == 2, done.stderr
    assert done.stdout == ""
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("mnist-ae: error:")
    assert not root.exists()


def test_a_mistake_in_a_process_of_its_own_leaves_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "run", "--modle", "simple"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mnist-ae: error:") and done.stderr.count("\n") == 1


def test_ctrl_c_says_that_the_command_goes_on(tmp_path):
    program = (
        "import os, signal, sys; from pipeline import cli\n"
        "from components.mnist_example_gen import datasets\n"
        # Ignored where a shell started the tests in the background.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "datasets.find = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(cli.main(['data']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == "\nmnist-ae: interrupted; the same command goes on from here\n"


def test_a_reader_that_has_had_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-u", "-m", "pipeline.cli", "models", "--json"],
        cwd=REPOSITORY,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_second_run_in_the_same_root_says_so(cli, tmp_path):
    from pipeline.locking import locked

    with locked(str(tmp_path)):
        done = cli("run", "--dataset", "mnist-5k", "--root", str(tmp_path))
    assert done.returncode == 2
    assert f"process {os.getpid()}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
