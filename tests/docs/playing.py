"""A process that runs what a document shows, as it stands: `playing.py DOCUMENT FOLDER`, there."""

import inspect
import os
import re
import sys
import warnings
from pathlib import Path


def play(document):
    """Run its examples, one after another, and the tests among them."""
    names = {"__name__": document.stem}
    blocks = re.findall(r"^```python\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)
    for number, block in enumerate(blocks, 1):
        if file := re.match(r"# (\w+\.py)\n", block):  # it is one's own, for what comes later
            Path(file[1]).write_text(block)
        code = block.replace("epochs=20", "epochs=1")  # the full run is `make train`
        exec(compile(code, f"{document.name}, example {number}", "exec"), names)
    for test in [thing for name, thing in names.items() if name.startswith("test_")]:
        takes = len(inspect.signature(test).parameters)
        test(*[names["state"]][:takes])


if __name__ == "__main__":
    os.chdir(sys.argv[2])
    sys.path.insert(0, sys.argv[2])
    warnings.simplefilter("error")
    play(Path(sys.argv[1]))
