"""The style of a report's page: light and dark, wide and narrow."""

from __future__ import annotations

from trainer.host.rendering.svg_charts import HUES

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b1f24; --dim: #5d6875;
  --line: #dfe3e8; --c0: #2f6fd0; --c1: #c65a12; --c2: #1f7f53; --c3: #b3424a; --c4: #7350b8;
  --c5: #80621a; --c6: #3f7385; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1c2026; --ink: #e6e9ed;
  --dim: #98a3b0; --line: #333a43; --c0: #72a7f5; --c1: #f0954f; --c2: #5dc493; --c3: #ec8088;
  --c4: #b298ee; --c5: #d3ae58; --c6: #7fbccf; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1360px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { margin: 0 0 12px; font-size: 26px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 32px 0 10px; font-size: 18px; }
h3 { margin: 0 0 4px; font-size: 14px; overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: 10px 28px; margin: 0; }
dt { color: var(--dim); font-size: 12px; }
dd { margin: 0; font-weight: 600; }
.charts { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; }
.names { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 12px; color: var(--dim); }
.names span { overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--dim); font-size: 11px; }
.grid { stroke: var(--line); }
path { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.wide { overflow-x: auto; }
.side { display: grid; gap: 0 24px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
th { color: var(--dim); font-weight: 500; font-size: 12px; white-space: nowrap; }
td { overflow-wrap: anywhere; }
td:first-child { min-width: 9em; }
.pairs td:first-child { width: 40%; }
.switch { display: none; margin: 0 0 10px; font-size: 14px; }
:root:has(.logarithmic) .switch { display: inline-block; }
.logarithmic { display: none; }
:root:has(#log:checked) .logarithmic { display: block; }
:root:has(#log:checked) .logarithmic + .linear { display: none; }
.mark { stroke: var(--dim); stroke-dasharray: 3 3; }
#tip { position: absolute; pointer-events: none; background: var(--card); color: var(--ink);
  border: 1px solid var(--line); border-radius: 6px; padding: 4px 8px; font-size: 12px;
  width: max-content; max-width: 80vw; overflow-wrap: anywhere;
  box-shadow: 0 2px 8px #0003; font-variant-numeric: tabular-nums; }
#tip[hidden] { display: none; }
.names i, #tip i { display: inline-block; width: 14px; height: 3px; margin-right: 5px;
  vertical-align: middle; }
.shares { display: flex; height: 14px; margin: 2px 0 8px; border-radius: 4px; overflow: hidden; }
.shares span, i.other { background: var(--dim); }
.shares span { flex: var(--share) 1 0; min-width: 1px; }
.pictures { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(45%, 170px), 1fr)); }
figure { margin: 0; font-size: 12px; color: var(--dim); overflow-wrap: anywhere; }
figure img { display: block; width: 100%; max-width: 144px; margin: 0 auto 8px; }
img.small { image-rendering: pixelated; }
.confusion { width: auto; }
.confusion th, .confusion td, .confusion td:first-child { padding: 3px 7px; min-width: 2.4em;
  text-align: right; border-bottom: 0; white-space: nowrap; }
.confusion td.right, .confusion td.wrong { border: 1px solid var(--card); border-radius: 4px; }
.confusion td.right { background: color-mix(in srgb, var(--c2) calc(var(--share) * 70%),
  transparent); }
.confusion td.wrong { background: color-mix(in srgb, var(--c3) calc(15% + var(--share) * 200%),
  transparent); }
.num { text-align: right; white-space: nowrap; }
.text { white-space: pre-wrap; }
@media (max-width: 560px) { table { font-size: 12px; } th, td { padding-right: 7px; }
  th { font-size: 11px; } .confusion th, .confusion td { padding: 3px 2px; min-width: 1.9em; }
  td:first-child { min-width: 7em; } }
""" + "".join(
    f".c{n} {{ stroke: var(--c{n}); }} circle.c{n} {{ fill: var(--c{n}); stroke: none; }} "
    f"i.c{n}, .shares .c{n} {{ background: var(--c{n}); }}\n"
    for n in range(HUES)
)
