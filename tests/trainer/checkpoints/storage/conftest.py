"""A bucket on a real server of S3 on loopback."""

import secrets

import pytest
from _bucket_server import bucket_server


@pytest.fixture(scope="session")
def server():
    """A bucket of a server that runs for all tests of this process."""
    with bucket_server() as bucket:
        yield bucket


@pytest.fixture
def bucket(server, monkeypatch):
    """The path of a run of its own in the bucket."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server.path(f"runs/{secrets.token_hex(4)}")
