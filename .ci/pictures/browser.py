"""Chromium without a window, led through a pipe: it waits in real time for what a page draws."""

import base64
import io
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

COLORS = 128
"""Of a picture: enough for a page, and a third of the bytes."""


class Page:
    """A page of a browser, which receives commands at file descriptor 3 and replies at 4."""

    def __init__(self, commands: int, replies: int) -> None:
        self._commands, self._replies = commands, os.fdopen(replies, "rb")
        self._numbers, self._session = itertools.count(1), {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": found["sessionId"]}

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params, **self._session}
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            reply = json.loads(self._read())
            if reply.get("id") == number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']['message']}")
                return dict(reply["result"])

    def _read(self) -> bytes:
        found = bytearray()
        while (byte := self._replies.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser must reply; it ended")
            found += byte
        return bytes(found)

    def show(self, address: str, width: int, height: int, scheme: str, seconds: float) -> None:
        """Open an address, `light` or `dark`, and give it time to draw."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.call("Page.navigate", url=address)
        time.sleep(seconds)

    def save(self, file: Path) -> None:
        """Write what is seen as a PNG of few colours."""
        data = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        seen = Image.open(io.BytesIO(data)).convert("RGB")
        seen.quantize(COLORS, dither=Image.Dither.NONE).save(file, optimize=True)


@contextmanager
def open_page() -> Iterator[Page]:
    """Start a browser, and end it with the block."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise RuntimeError(f"pictures of pages need one of {', '.join(BROWSERS)}: install one")
    (to_read, commands), (replies, to_write) = os.pipe(), os.pipe()

    def connect() -> None:
        read, write = os.dup(to_read), os.dup(to_write)
        os.dup2(read, 3)
        os.dup2(write, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
        started = subprocess.Popen(
            [browser, *flags, f"--user-data-dir={profile}", "--remote-debugging-pipe"],
            preexec_fn=connect,
            close_fds=False,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        try:
            yield Page(commands, replies)
        finally:
            started.terminate()
            started.wait()
