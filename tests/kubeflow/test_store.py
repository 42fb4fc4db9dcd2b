"""Addresses of metadata stores, and errors that may pass."""

from __future__ import annotations

import pytest
from ml_metadata import errors as mlmd_errors

from kubeflow import store as stores
from pipeline.errors import RunError, UserError


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("mysql://user@db:3307/name", "mysql"),
        ("sqlite:////tmp/x.sqlite", "sqlite"),
    ],
)
def test_an_address_is_a_connection(url, kind):
    assert stores.connection(url, "secret").WhichOneof("config") == kind


def test_the_parts_of_an_address_arrive():
    config = stores.connection("mysql://user@db:3307/name", "secret").mysql
    assert (config.user, config.host, config.port, config.database, config.password) == (
        "user",
        "db",
        3307,
        "name",
        "secret",
    )
    client = stores.connection("grpc://store:8080")
    assert (client.host, client.port) == ("store", 8080)


@pytest.mark.parametrize("url", ["", "mysql://db/name", "grpc://h", "sqlite://", "mysql://u@h:x/d"])
def test_another_address_is_refused(url):
    with pytest.raises(UserError, match="metadata store"):
        stores.connection(url)


def test_contention_is_waited_for_by_the_stores_own_client():
    assert stores.connection("mysql://u@db/d", "secret").retry_options.max_num_retries >= 20


def test_an_error_of_the_store_is_known_by_class_wherever_it_stands_in_the_chain():
    with pytest.raises(RunError) as caught:
        try:
            raise mlmd_errors.AbortedError("deadlock found")
        except mlmd_errors.AbortedError as e:
            raise RunError("Trainer failed") from e
    assert stores.is_transient(caught.value)
    assert not stores.is_transient(RunError("AbortedError: deadlock found"))
