"""Paths of objects in a bucket of Amazon S3, of a server like it, or of Google Cloud Storage."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

Result = TypeVar("Result")

ANSWER_SECONDS = 120.0
"""Seconds to wait for the answer to one request, its repetitions included."""

_RETRIES = {"max_retries": 10, "initial_delay": "500ms", "max_delay": "8s"}
"""For about a minute."""

_URL = re.compile(r"(s3|gs):/+([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])(?:/(.*))?", re.DOTALL)
"""`Path` turns two slashes into one."""

_MISSING = b"\x02"
"""The generation of an object that is not there."""


class BucketError(RuntimeError):
    """A bucket does not answer or refuses: nothing is known about what is in it."""


@dataclass(frozen=True)
class BucketPath:
    """The path of an object in a bucket, or what the paths of several begin with.

    Its methods are those of `pathlib.Path` where both have them. A bucket has no folders and no
    links; an object is written or replaced as a whole, and is durable then. `tensorstore` finds
    the credentials as the tools of Amazon and Google do. `AWS_ENDPOINT_URL` names another server.

    >>> path = BucketPath("s3", "models", "runs/digits")
    >>> print(path / "checkpoints", path.parent, path.name)
    s3://models/runs/digits/checkpoints s3://models/runs digits
    """

    scheme: str
    """`s3` or `gs`."""
    bucket: str
    """Its name."""
    key: str
    """Without slashes at its ends."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}"

    def __truediv__(self, name: str) -> BucketPath:
        return BucketPath(self.scheme, self.bucket, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        """The part after the last slash."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> BucketPath:
        """The path before the last slash."""
        return BucketPath(self.scheme, self.bucket, self.key.rpartition("/")[0])

    @property
    def store(self) -> Any:
        """The `tensorstore.KvStore` of the whole bucket."""
        return _open(
            self.scheme,
            self.bucket,
            os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        )

    def await_answer(self, request: Any, seconds: float = ANSWER_SECONDS) -> Any:
        """Return the result of a request to this path.

        Raises:
            BucketError: the bucket refuses it, or does not answer in time.
        """
        try:
            return request.result(timeout=seconds)
        except TimeoutError as error:
            reason = f"there was no answer within {seconds:g} seconds"
            raise BucketError(f"{self}: {reason}: see whether its server can be reached") from error
        except (ValueError, OSError) as error:
            reason = str(error).partition(" [")[0]
            raise BucketError(
                f"{self}: {reason}: see whether the bucket exists, and whether the credentials of "
                "this process allow to list, read, write and delete in it"
            ) from error

    def read_with_generation(self) -> tuple[bytes | None, bytes]:
        """Read the object, None if there is none, and its generation, for `replace`."""
        found = self.await_answer(self.store.read(self.key))
        content = None if found.state == "missing" else bytes(found.value)
        return content, bytes(found.stamp.generation)

    def read_bytes(self) -> bytes:
        """Read the object.

        Raises:
            FileNotFoundError: there is none.
        """
        content, _ = self.read_with_generation()
        if content is None:
            raise FileNotFoundError(f"there is no object {self}")
        return content

    def read_generation(self) -> bytes | None:
        """Return what tells the object from another one at its path; None if there is none."""
        found = self.await_answer(self.store.read(self.key, byte_range=slice(0, 0)))
        return None if found.state == "missing" else bytes(found.stamp.generation)

    def exists(self) -> bool:
        """Return whether there is an object of this path."""
        return self.read_generation() is not None

    def write_bytes(self, content: bytes) -> None:
        """Write the object, or replace it."""
        self.await_answer(self.store.write(self.key, content))

    def touch(self) -> None:
        """Write an empty object."""
        self.write_bytes(b"")

    def replace(self, content: bytes | None, generation: bytes | None) -> bytes | None:
        """Write, or with None remove, the object if it is the one that was read.

        Google's storage does this at once. TensorStore asks a server of S3 first and then writes,
        so that of two writers at the same instant both may believe that they wrote. If the answer
        is lost and the request repeated, the object is no longer the one that was read: it is read
        again then.

        Args:
            content: of the object, which nobody else writes; None removes it.
            generation: of the object that was read; None: there was none.

        Returns:
            The new generation; None if the object is another one by now.
        """
        request = self.store.write(self.key, content, if_equal=generation or _MISSING)
        if written := bytes(self.await_answer(request).generation):
            return written
        found, now = self.read_with_generation()
        return now if found == content else None

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object; it need not be there."""
        self.await_answer(self.store.write(self.key, None))

    def list_keys(self) -> list[str]:
        """List the paths of all objects below this one, relative to it, in order."""
        prefix = f"{self.key}/"
        found = self.store.list(self._get_range(), strip_prefix_length=len(prefix.encode()))
        return sorted(key.decode() for key in self.await_answer(found))

    def iterdir(self) -> Iterator[BucketPath]:
        """Return the paths below this one, up to the next slash, in order."""
        names = dict.fromkeys(key.partition("/")[0] for key in self.list_keys())
        return (self / name for name in names)

    def remove_all(self, *, but: Collection[str] = ()) -> None:
        """Remove all objects below this one, but those below some paths relative to it."""
        import tensorstore as ts

        kept = [(self / name)._get_range() for name in sorted(but)]
        whole = self._get_range()
        starts = [whole.inclusive_min, *(x.exclusive_max for x in kept)]
        ends = [*(x.inclusive_min for x in kept), whole.exclusive_max]
        ranges = [ts.KvStore.KeyRange(*both) for both in zip(starts, ends, strict=True)]
        for request in [self.store.delete_range(span) for span in ranges]:
            self.await_answer(request)

    def _get_range(self) -> Any:
        """Return the range of the keys below: `0` comes after the slash."""
        import tensorstore as ts

        return ts.KvStore.KeyRange(f"{self.key}/", f"{self.key}0")


@functools.lru_cache(maxsize=16)
def _open(scheme: str, bucket: str, endpoint: str | None) -> Any:
    import tensorstore as ts

    spec: dict[str, Any] = {"driver": "s3" if scheme == "s3" else "gcs", "bucket": bucket}
    spec["context"] = {f"{spec['driver']}_request_retries": _RETRIES}
    if scheme == "s3" and "AWS_ACCESS_KEY_ID" in os.environ:
        spec["aws_credentials"] = {"type": "environment"}  # or it reports files that are not there
    if endpoint and scheme == "s3":
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        spec |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
    return ts.KvStore.open(spec).result()


def parse_bucket_url(text: str) -> BucketPath | None:
    """Return the path that a URL of a bucket names; None if it is none.

    Raises:
        ValueError: it names a bucket without a path in it, or the path is malformed.

    >>> print(parse_bucket_url("gs://models/runs/digits/"), parse_bucket_url("runs/digits"))
    gs://models/runs/digits None
    """
    if not re.match(r"(s3|gs):/", text):
        return None
    found = _URL.fullmatch(text)
    key = found[3].strip("/") if found and found[3] else ""
    segments = key.split("/")
    if not found or not key.isprintable() or {"", ".", ".."} & {*segments}:
        raise ValueError(
            f"a run in a bucket is named by s3://BUCKET/PATH or gs://BUCKET/PATH, with a name of "
            f"small letters, digits, '-', '.' and '_', and a path that is not empty; got {text!r}"
        )
    return BucketPath(found[1], found[2], key)
