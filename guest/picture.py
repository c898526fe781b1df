#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Draws runs of restore.py as one SVG: guest memory by address against time.

On top a bar for each way of restoring, below a panel for each run that has a timeline, all on one
time axis. draw_hosts() draws bars alone, for restores on emulated hosts. Text and colours are in
STYLE, places and sizes in the constants below it. Every install is drawn; installs that fall on the
same point of the picture are drawn once.
"""
import html

# Okabe and Ito's colours, which colour-blind people tell apart; lighter ones on a dark ground.
STYLE = """
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:#1f2328}
.title{font-size:19px;font-weight:600}
.head{font-weight:600}
.soft{fill:#59636e}
.num{font-variant-numeric:tabular-nums}
.ground{fill:#ffffff}
.panel{fill:#f6f8fa;stroke:#d1d9e0}
.grid{stroke:#dde3e9;fill:none}
.bar{fill:#aab4be}
.bar2{fill:#d3d9df}
.ours{fill:#0072b2}
.ours2{fill:#8fc4e4}
.work{stroke:#1f2328;stroke-width:2;fill:none}
.back{stroke:#59636e;stroke-width:1.5;stroke-dasharray:4 3;fill:none}
.demand{stroke:#d55e00;fill:none}
.trace{stroke:#0072b2;fill:none}
.rest{stroke:#009e73;fill:none}
.zero{stroke:#aab4be;fill:none}
.poison{stroke:#cc79a7;fill:none}
@media (prefers-color-scheme:dark){
text{fill:#f0f6fc}
.soft{fill:#9ea7b3}
.ground{fill:#0d1117}
.panel{fill:#151b23;stroke:#3d444d}
.grid{stroke:#2a313a}
.bar{fill:#7d8590}
.bar2{fill:#454c56}
.ours{fill:#56b4e9}
.ours2{fill:#2a5f80}
.work{stroke:#f0f6fc}
.back{stroke:#9ea7b3}
.demand{stroke:#ff8a3d}
.trace{stroke:#56b4e9}
.rest{stroke:#1fbf92}
.zero{stroke:#555f6b}
.poison{stroke:#e5a0c5}
}
"""
WIDTH = 960
LEFT, RIGHT = 76, 28
BARS_TOP, BAR_STEP, BAR_HEIGHT = 100, 37, 13
PANEL_HEIGHT, PANEL_HEAD = 216, 62
CELL = 1.5

WAYS = (
    ("mapped", "(a) QEMU's mapped file"),
    ("naive", "(b) one page per fault, in order of arrival"),
    ("untraced", "(c) infill, no trace"),
    ("trace", "(d) infill, with the trace that (c) recorded"),
)
PANELS = ("untraced", "trace")
CLASSES = (
    ("demand", "on demand: the guest waits for it"),
    ("trace", "from the trace, ahead of the guest"),
    ("rest", "background"),
    ("zero", "zero page"),
    ("poison", "poisoned"),
)


def text(x, y, content, kind="", anchor="start"):
    """A line of text."""
    kind = f' class="{kind}"' if kind else ""
    anchor = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.4g}" y="{y:.4g}"{kind}{anchor}>{html.escape(content)}</text>'


def middle_run(runs, way, cache):
    """The run whose first useful work is the median one."""
    mine = sorted((run for run in runs if run["way"] == way and run["cache"] == cache),
                  key=lambda run: run["first_work_ms"])
    return mine[(len(mine) - 1) // 2] if mine else None


def nice_step(span, count):
    """A round step (1, 2 or 5 times a power of ten) that divides a span into about @count."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if span / (step * factor) <= count:
                return step * factor
        step *= 10


class Scale:
    """Milliseconds to x."""

    def __init__(self, span):
        self.span = span
        self.step = nice_step(span, 9)

    def x(self, ms):
        """Where a time is; what is later than the axis is at its end."""
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(ms / self.span, 0), 1)

    def ticks(self):
        """The times that have a line."""
        return range(0, int(self.span) + 1, self.step)


def cells_of(installs, scale, memory):
    """{class: {column: set of rows}}: the grid cells that each class's installs touch."""
    cells = {}
    rows = int(PANEL_HEIGHT / CELL)
    for ms, offset, length, kind in installs:
        if ms > scale.span:
            continue
        column = int((scale.x(ms) - LEFT) / CELL)
        first = offset * rows // memory
        last = min((offset + max(length, 1) - 1) * rows // memory, rows - 1)
        cells.setdefault(kind, {}).setdefault(column, set()).update(range(first, last + 1))
    return cells


def runs_of(rows):
    """Neighbouring rows joined: (first, count)."""
    first = last = None
    for row in sorted(rows):
        if first is not None and row == last + 1:
            last = row
            continue
        if first is not None:
            yield first, last - first + 1
        first = last = row
    if first is not None:
        yield first, last - first + 1


def draw_cells(columns):
    """One path in units of cells: a vertical stroke for each run of rows, moves relative."""
    path, at = [], (0, 0)
    for column in sorted(columns):
        for row, count in runs_of(columns[column]):
            path.append(f"m{column - at[0]} {row - at[1]}v{count}".replace(" -", "-"))
            at = (column, row + count)
    return "".join(path)


def draw_axis(scale, top, bottom, labels):
    """Vertical lines of the time grid, and their labels below when wanted."""
    lines = "".join(f"M{scale.x(ms):.1f} {top}V{bottom}" for ms in scale.ticks())
    out = [f'<path class="grid" d="{lines}"/>']
    if labels:
        for ms in scale.ticks():
            out.append(text(scale.x(ms), bottom + 17, f"{ms}", "soft num", "middle"))
    return out


def draw_bars(bars, scale, top, unit):
    """How long the user waits, by each way: (title, is it infill's, restore returned, first work)."""
    bottom = top + BAR_STEP * len(bars) - 12
    out = draw_axis(scale, top - 16, bottom, False)
    y = top
    for title, own, back, work in bars:
        kind = "ours" if own else "bar"
        back, end = scale.x(back), scale.x(work)
        out.append(f'<rect class="{kind}2" x="{LEFT}" y="{y}" width="{back - LEFT:.1f}" '
                   f'height="{BAR_HEIGHT}"/>')
        out.append(f'<rect class="{kind}" x="{back:.1f}" y="{y}" width="{end - back:.1f}" '
                   f'height="{BAR_HEIGHT}"/>')
        out.append(text(LEFT, y - 4, title))
        out.append(text(end + 6, y + 11, f"{work:.0f} {unit}", "head num"))
        y += BAR_STEP
    return out


def draw_mark(scale, ms, top, kind, label, row):
    """A vertical line through a panel, its label above."""
    x = scale.x(ms)
    y = top - 8 - 17 * row
    anchor, shift = ("end", -6) if x > WIDTH - 220 else ("start", 6)
    return [f'<path class="{kind}" d="M{x:.1f} {y - 10}V{top + PANEL_HEIGHT}"/>',
            text(x + shift, y, f"{label} {ms:.0f} ms", "num" if row else "head num", anchor)]


def draw_memory_axis(top, memory):
    """Addresses, in MiB, from the bottom of the file at the top of the panel."""
    out, mib = [], memory >> 20
    for part in range(5):
        y = top + PANEL_HEIGHT * part / 4
        out.append(text(LEFT - 8, y + 4, f"{mib * part // 4}", "soft num", "end"))
    middle = top + PANEL_HEIGHT / 2
    out.append(f'<text class="soft" text-anchor="middle" transform="translate(26 {middle:.0f}) '
               f'rotate(-90)">guest memory, MiB</text>')
    return out


def draw_panel(run, title, top, scale, memory):
    """One run: its installs, and when the restore returned and the first work was done."""
    width = WIDTH - LEFT - RIGHT
    out = [text(LEFT, top - 46, title, "head"),
           f'<rect class="panel" x="{LEFT}" y="{top}" width="{width}" height="{PANEL_HEIGHT}"/>']
    out += draw_axis(scale, top, top + PANEL_HEIGHT, False)
    cells = cells_of(run["installed"], scale, memory)
    # Strokes are centred on their column, and one wider than it so that columns touch.
    for kind, _ in reversed(CLASSES):
        if kind in cells:
            out.append(f'<path class="{kind}" stroke-width="1.15" transform="translate('
                       f'{LEFT + CELL / 2} {top}) scale({CELL})" d="{draw_cells(cells[kind])}"/>')
    out += draw_mark(scale, run["restored_ms"], top, "back", "restore returned", 1)
    out += draw_mark(scale, run["first_work_ms"], top, "work", "first useful work", 0)
    resident = run.get("resident_ms")
    if resident and resident > scale.span:
        out.append(text(WIDTH - RIGHT, top - 46, f"everything resident at {resident:.0f} ms, "
                        "beyond the right edge", "soft num", "end"))
    elif resident:
        out.append(text(WIDTH - RIGHT, top - 46, f"everything resident at {resident:.0f} ms",
                        "soft num", "end"))
    return out + draw_memory_axis(top, memory)


def draw_legend(y, kinds):
    """What the colours mean; only those that are in the picture."""
    out, x = [], LEFT
    for kind, label in CLASSES:
        if kind not in kinds:
            continue
        out.append(f'<path class="{kind}" stroke-width="11" d="M{x} {y - 4.5}h11"/>')
        out.append(text(x + 17, y, label))
        x += 17 + 7.0 * len(label) + 24
    return out


def draw(runs, cache, memory):
    """Return the SVG of the median runs with a page cache that was @cache."""
    chosen = {way: middle_run(runs, way, cache) for way, _ in WAYS}
    chosen = {way: run for way, run in chosen.items() if run}
    scale = Scale(max(run["first_work_ms"] for run in chosen.values()) * 1.12)
    y = BARS_TOP + BAR_STEP * len(chosen) + PANEL_HEAD + 12
    body = [text(LEFT, 34, "How long until a restored Linux guest does useful work", "title"),
            text(LEFT, 56, f"{memory >> 20} MiB guest, unmodified QEMU, {cache} page cache, the "
                 "median run of each. Pale: until the restore returned.", "soft")]
    body += draw_bars([(title, way in PANELS, chosen[way]["restored_ms"], chosen[way]["first_work_ms"])
                       for way, title in WAYS if way in chosen], scale, BARS_TOP, "ms")
    kinds = set()
    for way, title in WAYS:
        if way in PANELS and way in chosen:
            body += draw_panel(chosen[way], title, y, scale, memory)
            kinds |= {install[3] for install in chosen[way]["installed"]}
            y += PANEL_HEIGHT + PANEL_HEAD + 14
    bottom = y - PANEL_HEAD - 14
    body += draw_axis(scale, bottom, bottom + 5, True)
    body.append(text((WIDTH + LEFT - RIGHT) / 2, bottom + 40,
                     "milliseconds since the command was started", "soft", "middle"))
    body += draw_legend(bottom + 72, kinds)
    height = bottom + 94
    return document(body, height, "Guest memory by address against time, while a Linux guest is restored")


def draw_hosts(hosts):
    """Return the SVG of bars for each emulated host, {host: bars of draw_bars()}, on one axis."""
    scale = Scale(max(work for bars in hosts.values() for _, _, _, work in bars) * 1.12)
    body = [text(LEFT, 34, "How long until a Linux guest restored on KVM does useful work", "title"),
            text(LEFT, 56, "Instructions of the emulated host, guest included. Pale: until the "
                 "guest runs.", "soft")]
    top = BARS_TOP + 30
    for host, bars in hosts.items():
        body.append(text(LEFT, top - 32, host, "head"))
        body += draw_bars(bars, scale, top, "million")
        top += BAR_STEP * len(bars) + PANEL_HEAD
    bottom = top - PANEL_HEAD - 12
    body += draw_axis(scale, bottom, bottom + 5, True)
    body.append(text((WIDTH + LEFT - RIGHT) / 2, bottom + 40,
                     "millions of instructions since the VMM was started", "soft", "middle"))
    return document(body, bottom + 62, "How long each way of restoring a Linux guest takes")


def document(body, height, title):
    """The SVG around its content."""
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">',
        "<!-- SPDX-License-Identifier: MIT -->",
        f"<title>{title}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{height}" rx="8"/>',
        *body, "</svg>", ""])
