"""Colours of the SVG pictures: light, or dark where the reader's system is."""

CARD = """svg { --page: #fff; --ink: #1b1f24; --dim: #5d6875; --line: #d3d8de;
  --c0: #2f6fd0; --c1: #c65a12; --c2: #1f7f53; --c3: #b3424a; --c4: #7350b8; --c5: #80621a;
  --c6: #3f7385; }
@media (prefers-color-scheme: dark) { svg { --page: #1c2026; --ink: #e6e9ed; --dim: #98a3b0;
  --line: #3c444e; --c0: #72a7f5; --c1: #f0954f; --c2: #5dc493; --c3: #ec8088; --c4: #b298ee;
  --c5: #d3ae58; --c6: #7fbccf; } }
text { fill: var(--ink); font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans",
  sans-serif; }
.page { fill: var(--page); stroke: var(--line); }
"""
"""Style of a picture: it has a background of its own, so each page shows it readably."""


def draw_card(width: int, height: int, style: str, parts: list[str], title: str) -> str:
    """Return an SVG picture with a background and a title."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            f"<title>{title}</title>",
            f"<style>{CARD}{style}</style>",
            f'<rect class="page" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8"/>',
            *parts,
            "</svg>\n",
        ]
    )
