"""What Beam is told: the user's options, over what suits the runner."""

from pipeline import config
from pipeline.beam_options import beam_args


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
