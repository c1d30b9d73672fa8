"""The diagram of an epoch: phases on the device, events on the host, and stages of an event."""

from pathlib import Path

from colors import draw_card

WIDTH, HEIGHT = 780, 486

STYLE = """
.phase { fill: var(--c0); } .phase-name { fill: var(--page); font-weight: 600; }
.event { fill: none; stroke: var(--dim); } .epoch { fill: none; stroke: var(--c0);
  stroke-dasharray: 5 4; } .lane { fill: var(--dim); font-size: 13px; }
.control { fill: var(--c1); } .observe { fill: var(--c2); } .save { fill: var(--c4); }
.arrow { fill: none; stroke: var(--dim); stroke-width: 1.5; } .head { fill: var(--dim); }
text { font-size: 15px; } .stage { fill: var(--page); font-weight: 600; font-size: 14px; }
.mono { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 14px; } .small { font-size: 13px; fill: var(--dim); }
"""

STAGES = ("control", "observe", "save")

CARDS = {
    "control": ("may change the state", "evaluate", "stop_early", "average_params"),
    "observe": ("reads the result", "log_metrics", "record_replays", "write_report"),
    "save": ("saves the result", "save_checkpoints"),
}
"""What each stage does, and hooks of it."""

DEVICE, HOST = 64, 166
"""Tops of the two lanes."""


def draw_epoch(runs: Path, to: Path) -> None:
    """Write `epoch.svg`; it needs no run."""
    parts = [
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path class="head" d="M0 0L8 4L0 8Z"/></marker></defs>',
        f'<rect class="epoch" x="124" y="32" width="528" height="{HOST + 102}" rx="8"/>',
        _text(388, 22, "one epoch, repeated", "middle"),
        _text(16, DEVICE + 4, "device: jitted", "start", "lane"),
        _text(16, DEVICE + 22, "phases", "start", "lane"),
        _text(16, HOST - 12, "host: hooks", "start", "lane"),
        *_phase(136, "rollout"),
        *_phase(338, "update"),
        *_event(16, "start", STAGES),
        *_event(234, "rollout", STAGES),
        *_event(436, "update", STAGES),
        *_event(548, "epoch", STAGES),
        *_event(668, "end", ("save", "control", "observe")),
        _arrow("M112 196H118V91H134"),
        _arrow(f"M186 {DEVICE + 54}V196H232"),
        _arrow("M330 196H336V120"),
        _arrow(f"M388 {DEVICE + 54}V196H434"),
        _arrow("M532 196H546"),
        _arrow("M644 196H666"),
        _arrow("M236 80H336"),
        _text(286, 73, "experience", "middle", "small"),
        _arrow("M600 164V50H186V62"),
        _text(490, 44, "state", "middle", "small"),
    ]
    for number, (stage, (does, *names)) in enumerate(CARDS.items()):
        parts += _card(16 + 252 * number, f"{number + 1}. {stage}", stage, does, names)
    title = "An epoch: phases on the device, events between them, and the stages of hooks"
    (to / "epoch.svg").write_text(draw_card(WIDTH, HEIGHT, STYLE, parts, title))


def _phase(x: int, name: str) -> list[str]:
    box = f'<rect class="phase" x="{x}" y="{DEVICE}" width="100" height="54" rx="6"/>'
    return [box, _text(x + 50, DEVICE + 32, name, "middle", "phase-name")]


def _event(x: int, name: str, stages: tuple[str, ...]) -> list[str]:
    parts = [
        f'<rect class="event" x="{x}" y="{HOST}" width="96" height="124" rx="6"/>',
        _text(x + 48, HOST + 20, name, "middle", "mono"),
    ]
    for number, stage in enumerate(stages):
        y = HOST + 30 + 30 * number
        parts += [
            f'<rect class="{stage}" x="{x + 8}" y="{y}" width="80" height="26" rx="4"/>',
            _text(x + 48, y + 18, stage, "middle", "stage"),
        ]
    return parts


def _card(x: int, head: str, stage: str, does: str, names: list[str]) -> list[str]:
    y = 342
    return [
        f'<rect class="event" x="{x}" y="{y}" width="240" height="128" rx="6"/>',
        f'<rect class="{stage}" x="{x + 8}" y="{y + 8}" width="104" height="26" rx="4"/>',
        _text(x + 60, y + 26, head, "middle", "stage"),
        _text(x + 8, y + 56, does, "start"),
        *(
            _text(x + 8, y + 78 + 20 * number, name, "start", "mono")
            for number, name in enumerate(names)
        ),
    ]


def _text(x: int, y: int, text: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def _arrow(path: str) -> str:
    return f'<path class="arrow" marker-end="url(#head)" d="{path}"/>'
