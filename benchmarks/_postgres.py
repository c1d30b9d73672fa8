"""A PostgreSQL server for tests and benchmarks: of its own, in a folder that is removed again."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

LIMIT = 60
"""Seconds that a start or a stop may take."""

USER = "entracte"

_PLACES = "/usr/lib/postgresql", "/usr/pgsql", "/opt/homebrew/opt", "/usr/local/opt"


def programs():
    """Find the folder of `initdb` and `postgres`, the newest; None where there is none."""
    if (found := shutil.which("initdb")) and shutil.which("postgres"):
        return Path(found).resolve().parent
    folders = [path.parent for place in _PLACES for path in Path(place).glob("*/bin/initdb")]
    return max(folders, key=lambda folder: _version(folder.parent.name), default=None)


@contextlib.contextmanager
def stores():
    """Give the stores to measure, name to URL (None: a file), and notes on what is left out.

    The server, durable, runs within.
    """
    if programs() is None:
        yield {"SQLite": None}, ["no PostgreSQL is installed here: it was left out"]
        return
    with contextlib.closing(Server(durable=True)) as server:
        yield {"SQLite": None, "PostgreSQL": server.url()}, []


def _version(name):
    return [int(digits) for digits in "".join(c if c.isdigit() else " " for c in name).split()]


class Server:
    """A server on a loopback port; on Linux it ends with the thread that started it, at the latest.

    It does not wait for the disk, so that a crash of the machine, and not its own, would lose data,
    unless it is made `durable`. Where root makes it, another user runs it, for it refuses root.
    """

    def __init__(self, *, durable=False):
        self.process = None
        self._programs = programs()
        self.folder = Path(tempfile.mkdtemp(prefix="entracte-postgres-"))
        self._as = {}
        if os.geteuid() == 0:
            account = _account()
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._sync = "on" if durable else "off"
        try:
            made = self._run("initdb", "-A", "trust", "-U", USER, "-E", "UTF8", "--locale=C", "-N")
            if made.returncode:
                raise RuntimeError(f"initdb failed: {made.stdout}{made.stderr}")
            self.start()
        except BaseException:
            self.close()
            raise

    def url(self, database="postgres"):
        """Return the URL of a database."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def start(self):
        """Start it, and wait until it answers."""
        deadline = time.monotonic() + LIMIT
        while not self._started(deadline):
            # The processes of one that was killed may keep its shared memory for a moment.
            if time.monotonic() > deadline:
                raise RuntimeError(f"no start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def _started(self, deadline):
        # Its parent's death ends it, where there is what arranges that.
        bound = [found, "--pdeathsig", "QUIT"] if (found := shutil.which("setpriv")) else []
        options = {
            "fsync": self._sync,
            "synchronous_commit": self._sync,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
        }
        command = [*bound, self._programs / "postgres", "-D", self.folder / "data"]
        command += ["-p", str(self.port), *(f"--{name}={value}" for name, value in options.items())]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd="/", stdout=log, stderr=log, stdin=subprocess.DEVNULL, **self._as
            )
        while self.process.poll() is None and time.monotonic() < deadline:
            # The eighth line says that it accepts connections.
            with contextlib.suppress(OSError, IndexError):
                lines = (self.folder / "data" / "postmaster.pid").read_text().splitlines()
                if int(lines[0]) == self.process.pid and lines[7].strip() == "ready":
                    return True
            time.sleep(0.01)
        return False

    def stop(self, number=signal.SIGINT):
        """End it, by default in good order; SIGKILL leaves it as a crash would."""
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def close(self):
        """End it and remove its folder."""
        self.stop(signal.SIGQUIT)  # nothing of it will be read
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program, *arguments):
        return subprocess.run(
            [self._programs / program, "-D", self.folder / "data", *arguments],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=LIMIT,
            **self._as,
        )


def _account():
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("PostgreSQL does not run as root, and there is no user `nobody`")
