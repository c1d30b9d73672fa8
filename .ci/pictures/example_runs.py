"""Runs of the examples, in a folder: each is trained once, and its output kept."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).parents[2]


def train(name: str, folder: Path) -> Path:
    """Run an example to its end, unless it was, and return the file of its output."""
    output = folder / f"{name}.log"
    if not output.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"training examples/{name}.py")
        text = subprocess.check_output(_command(name), cwd=folder, stderr=subprocess.STDOUT)
        output.write_bytes(text)
    return output


def train_in_terminal(name: str, folder: Path, columns: int) -> str:
    """Run an example in a terminal, unless it was, and return what the terminal received."""
    output = folder / f"{name}.log"
    if not output.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"training examples/{name}.py in a terminal")
        output.write_bytes(_run_in_terminal(_command(name), folder, columns))
    return output.read_bytes().decode()


def _command(name: str) -> list[str]:
    return [sys.executable, str(ROOT / "examples" / f"{name}.py")]


def _run_in_terminal(command: list[str], folder: Path, columns: int) -> bytes:
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        kept = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        colors = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        os.execve(command[0], command, kept | colors)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))
    received = bytearray()
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # Linux reports the end of the terminal's other side in this way
            part = b""
        if not part:
            break
        received += part
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} must succeed; got:\n{received.decode()}")
    return bytes(received)
