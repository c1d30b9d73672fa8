"""A process that runs what a document shows: `playing.py DOCUMENT FOLDER`, there.

What trains long is made shorter: `epochs=20` always, and what a comment of the document lists:

    <!-- in tests
    width=128 -> width=16
    -->
"""

import inspect
import os
import re
import sys
import warnings
from pathlib import Path

from weights import write_weights

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
CHANGES = re.compile(r"^<!-- in tests\n(.*?)^-->", re.DOTALL | re.MULTILINE)
WEIGHTS = "weights/llama"
"""A directory of the hub that pages of language models read."""


def play(document):
    """Run its examples, one after another, and the tests among them."""
    names = {"__name__": document.stem}
    text = document.read_text()
    blocks = BLOCK.findall(text)
    if any(WEIGHTS in block for block in blocks):
        write_weights(Path(WEIGHTS))
    for number, block in enumerate(blocks, 1):
        code = block.replace("epochs=20", "epochs=1")  # the full run is `make train`
        for change in "".join(CHANGES.findall(text)).splitlines():
            code = code.replace(*change.split(" -> "))
        if file := re.match(r"# (\w+\.py)\n", block):  # it is one's own, for what comes later
            Path(file[1]).write_text(code)
        code = code.replace('if __name__ == "__main__":', "if True:")
        exec(compile(code, f"{document.name}, example {number}", "exec"), names)
    for test in [thing for name, thing in names.items() if name.startswith("test_")]:
        takes = len(inspect.signature(test).parameters)
        test(*[names["state"]][:takes])


if __name__ == "__main__":
    os.chdir(sys.argv[2])
    sys.path[:0] = [sys.argv[2], str(ROOT / "examples")]
    warnings.simplefilter("error")
    play(Path(sys.argv[1]))
