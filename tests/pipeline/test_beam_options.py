"""What Beam is told: the user's options, over what suits the runner."""

import socket

import pytest

from pipeline import config
from pipeline.beam_options import beam_args, check_engine
from pipeline.errors import UserError


def flags(*assignments):
    return beam_args(config.load(None, assignments))


def test_the_local_runner_works_in_memory_unless_told_otherwise():
    assert flags() == [
        "--runner=DirectRunner",
        "--direct_running_mode=in_memory",
        "--direct_num_workers=1",
        "--sdk_container_image=none",
    ]
    assert "--direct_num_workers=4" in flags("beam.direct_num_workers=4")


def test_another_runner_gets_what_the_user_says():
    assert flags("beam.runner=FlinkRunner") == ["--runner=FlinkRunner"]


def test_workers_of_this_environment_need_no_package_of_it():
    told = flags("beam.runner=FlinkRunner", "beam.environment_type=LOOPBACK")
    assert "--sdk_container_image=none" in told
    docker = flags("beam.runner=FlinkRunner", "beam.environment_type=DOCKER")
    assert "--sdk_container_image=none" not in docker


@pytest.mark.parametrize("key", ["job_endpoint", "flink_master"])
def test_an_engine_that_listens_is_taken(key):
    with socket.create_server(("localhost", 0)) as server:
        check_engine(config.load(None, [f"beam.{key}=localhost:{server.getsockname()[1]}"]))


@pytest.mark.parametrize("own", ["beam.job_endpoint=embed", "beam.flink_master='[local]'"])
def test_an_engine_that_beam_brings_is_not_looked_for(own):
    check_engine(config.load(None, [own]))


@pytest.mark.parametrize("address", ["localhost", "localhost:many", ":8099"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(UserError, match="beam.job_endpoint: .*expected HOST:PORT"):
        check_engine(config.load(None, [f"beam.job_endpoint={address}"]))


@pytest.mark.parametrize("address", ["http://nowhere.invalid", "https://nowhere.invalid/flink"])
def test_an_address_with_a_scheme_needs_no_port(address):
    with pytest.raises(UserError, match="beam.flink_master: .*nobody listens there"):
        check_engine(config.load(None, [f"beam.flink_master={address}"]))


def test_an_engine_that_is_not_there_is_one_line_before_anything_is_written(cli, tmp_path):
    with socket.socket() as unused:
        unused.bind(("localhost", 0))  # and does not listen
        address = f"localhost:{unused.getsockname()[1]}"
        root = tmp_path / "runs"
        engine = ("--beam", "runner=PortableRunner", "--beam", f"job_endpoint={address}")
        done = cli("run", "--dataset", "mnist-5k", "--root", str(root), *engine)
    assert done.returncode == 2
    assert f"beam.job_endpoint: {address}: nobody listens there" in done.stderr
    assert done.stderr.count("\n") == 1 and not root.exists()
