"""A server of S3 on loopback, which keeps its objects in memory: moto's."""

import contextlib
import logging
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

from trainer.checkpoints.storage.bucket_path import BucketPath


class Bucket(NamedTuple):
    """A bucket of a server, for this process and others."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a process finds the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "anybody",
            "AWS_SECRET_ACCESS_KEY": "anything",
        }

    def path(self, name: str) -> BucketPath:
        """Return a path in the bucket."""
        return BucketPath("s3", "entracte", name)


@contextlib.contextmanager
def bucket_server() -> Iterator[Bucket]:
    """Serve an empty bucket."""
    from moto.server import ThreadedMotoServer  # not in every process that has a bucket

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # or it reports each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        bucket = Bucket(f"http://{host}:{port}")
        request = urllib.request.Request(f"{bucket.endpoint}/entracte", method="PUT")
        urllib.request.urlopen(request, timeout=60).close()
        yield bucket
    finally:
        server.stop()
