"""Pictures that a run recorded, such as its worst mistakes, as cards of a report."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

SMALL = 64
"""Pixels below which a picture is enlarged without smoothing."""


def render_pictures(pictures: Sequence[tuple[str, int, str, str]]) -> str:
    """Render pictures, each a name, an epoch, a text and a PNG in base64, as figures.

    >>> pixel = base64.b64encode(bytes(16) + (8).to_bytes(4, "big")).decode()
    >>> shown = render_pictures([("mistakes/val/0/image", 5, "class 8 <b>", pixel)])
    >>> 'class="small"' in shown, "class 8 &lt;b&gt;" in shown, "epoch 5" in shown
    (True, True, True)
    """
    figures = []
    for name, epoch, text, png in pictures:
        width = int.from_bytes(base64.b64decode(png)[16:20], "big")
        kind = "small" if width < SMALL else "large"
        source = html.escape(f"data:image/png;base64,{png}")
        figures.append(
            f'<figure class="card"><img class="{kind}" alt="{html.escape(name)}" src="{source}">'
            f"<figcaption>{html.escape(text or name)}<br>epoch {epoch:,}</figcaption></figure>"
        )
    return f'<div class="pictures">{"".join(figures)}</div>' if figures else ""
