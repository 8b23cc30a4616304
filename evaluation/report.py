"""The evaluation as one HTML page: tables, curves and the worst frames. It needs no network and fits a phone."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from datasets.filelists import MASK_SUFFIXES, files_by_stem
from evaluation.comparison import METRICS, RESAMPLES, Comparison
from evaluation.davis_evaluation import Evaluation, GroundTruth, SequenceResult
from utils.files import write_text
from utils.masks import DAVIS_PALETTE, read_mask
from utils.names import told_apart
from utils.overlay import overlay
from utils.pictures import read_frame
from utils.run_record import features_used

WORST_FRAMES = 3  # of each sequence
PICTURE_WIDTH = 420  # [pixels]
RESULT_COLORS = ("#1f6feb", "#d9480f", "#2b8a3e", "#9c36b5", "#0b7285", "#e03131", "#8a6d00", "#e64980", "#495057",
                  "#5c940d")

STYLE = """
:root { color-scheme: light; --line: #d8dee4; --soft: #57606a; --bar: #cfe3ff; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 1rem; color: #1f2328; background: #fff;
       font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .2rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0; } p { margin: .3rem 0; color: var(--soft); }
.wide { overflow-x: auto; } .tall { max-height: 26rem; overflow: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
td:first-child { max-width: 40vw; white-space: normal; overflow-wrap: anywhere; }
h1, h3, th, p, figcaption { overflow-wrap: anywhere; } thead th { min-width: 4.5rem; }
thead th:first-child { min-width: 6rem; } h2 ~ h3 { margin-top: 1rem; }
thead th { position: sticky; top: 0; background: #fff; z-index: 1; white-space: normal; vertical-align: bottom; }
thead th:first-child { z-index: 2; }
td.best { font-weight: 700; }
td.bar { background: linear-gradient(to right, var(--bar) var(--share), transparent var(--share)); }
th button { all: unset; cursor: pointer; font-weight: 700; } th button:focus-visible { outline: 2px solid #1f6feb; }
th[aria-sort=ascending] button::after { content: " \\25b2"; }
th[aria-sort=descending] button::after { content: " \\25bc"; }
section { border: 1px solid var(--line); border-radius: 8px; padding: .8rem; margin: .8rem 0; }
.charts, .frame { display: grid; gap: .6rem; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); }
.frame { grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); }
@media (min-width: 700px) { .single { display: grid; gap: .6rem; grid-template-columns: repeat(3, 1fr); }
  .single .frame { grid-template-columns: 1fr; gap: 0; align-content: start; } }
svg { width: 100%; height: auto; display: block; } svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
figure { margin: .6rem 0 0; } figcaption { font-size: .85rem; color: var(--soft); }
img { width: 100%; height: auto; display: block; border-radius: 4px; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .3em 0 .8em; }
td .key, p .key:first-child { margin-left: 0; }
.warning { color: #9a3412; font-weight: 600; } a { color: #0969da; text-decoration: none; }
"""

SORTING = """
for (const table of document.querySelectorAll("table.sortable"))
  table.querySelectorAll("thead th").forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.children[column].dataset.value;
    const order = (a, b) => column ? value(a) - value(b) : value(a).localeCompare(value(b), "en", {numeric: true});
    const rows = [...table.tBodies[0].rows].sort((a, b) => up ? order(a, b) : order(b, a));
    table.tBodies[0].append(...rows);
  }));
"""


def write_report(path: str | Path, evaluations: Sequence[Evaluation], truth: GroundTruth,
                 images: str | Path | None = None, comparisons: Sequence[Comparison] = ()) -> None:
    """Write the page of one or more results of one ground truth; `comparisons` of the first with each of the others."""
    write_text(path, _page(evaluations, truth, Path(images) if images else truth.images, comparisons))


def _page(evaluations: Sequence[Evaluation], truth: GroundTruth, images: Path,
          comparisons: Sequence[Comparison]) -> str:
    names = told_apart([evaluation.results for evaluation in evaluations])
    title = f"J&F of {names[0]}" if len(names) == 1 else f"J&F of {len(names)} results"
    first = evaluations[0]
    frames = sum(len(sequence.frames) for sequence in first.sequences)
    features = [f"<p>{escape(name)}: features {escape(str(used))}</p>" for name, e in zip(names, evaluations)
                if (used := features_used(e.results))]
    missing = [f"<p class=warning>{escape(name)}: {e.n_missing} missing frames counted as empty masks</p>"
               for name, e in zip(names, evaluations) if e.n_missing]
    sequences = [_sequence_section(names, results, evaluations, truth, images)
                 for results in zip(*(evaluation.sequences for evaluation in evaluations))]
    return f"""<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style>
<h1>{escape(title)}</h1>
<p>{first.sequences[0].task}: {len(first.sequences)} sequences, {len(first.objects)} objects, {frames} frames,
ground truth {escape(str(truth.masks))}; shares in [0,1]</p>{"".join(features)}{"".join(missing)}
<h2>All objects</h2>{_global_table(names, evaluations)}{_difference_table(names, comparisons)}
<h2>Object by object</h2><p>A heading sorts by its column; a name leads to its sequence.
{f"Other results: J&amp;F more or less than {escape(names[0])}." * bool(comparisons)}</p>
{_object_table(names, evaluations, comparisons)}
<h2>Sequence by sequence</h2><p>J and F of every scored frame{", mean over the objects" if len(names) > 1 else ""};
below them the {WORST_FRAMES} worst frames, which the dots mark. The yellow line on a result is the outline of the
truth.</p>
{"".join(sequences)}<script>{SORTING}</script></html>
"""


def _global_table(names: Sequence[str], evaluations: Sequence[Evaluation]) -> str:
    columns = list(evaluations[0].means)
    best = {c: (min if c.endswith("Decay") else max)(e.means[c] for e in evaluations) for c in columns}
    rows = []
    for color, name, evaluation in zip(_colors(len(names)), names, evaluations):
        cells = "".join(f"<td{' class=best' * (len(names) > 1 and value == best[c])}>{value:.3f}"
                        for c, value in evaluation.means.items())
        rows.append(f"<tr><td title='{escape(str(evaluation.results))}'>{_key(color) * (len(names) > 1)}{escape(name)}"
                    f"{cells}")
    head = "".join(f"<th>{escape(column)}" for column in columns)
    return f"<div class=wide><table><thead><tr><th>Results{head}</thead><tbody>{''.join(rows)}</tbody></table></div>"


def _difference_table(names: Sequence[str], comparisons: Sequence[Comparison]) -> str:
    """What each other result has more than the first, with its error and interval."""
    if not comparisons:
        return ""
    rows = []
    for color, name, comparison in zip(_colors(len(names))[1:], names[1:], comparisons):
        cells = "".join(f"<td>{d.mean:+.3f} ± {d.standard_error:.3f}<td>{d.low:+.3f} to {d.high:+.3f}"
                        for d in comparison.means.values())
        rows.append(f"<tr><td>{_key(color)}{escape(name)}{cells}<td>{comparison.better} of "
                    f"{len(comparison.sequences)}")
    head = "".join(f"<th>{escape(metric)}<th>95 %" for metric in METRICS)
    return (f"<h3>Differences from {escape(names[0])}</h3><p>Mean over all objects ± standard error over sequences; "
            f"95 % of the means of {RESAMPLES} bootstrap samples of sequences.</p><div class=wide><table>"
            f"<thead><tr><th>Results{head}<th>better in</thead><tbody>{''.join(rows)}</tbody></table></div>")


def _object_table(names: Sequence[str], evaluations: Sequence[Evaluation], comparisons: Sequence[Comparison]) -> str:
    """One result: all its statistics. Several: J&F of the first, and what each other has more or less."""
    kinds = ("Mean", "Recall", "Decay")
    heads = ["Object", f"J&F {names[0]}", *names[1:]] if comparisons else [
        "Object", "J&F-Mean", *(f"{metric}-{kind}" for metric in "JF" for kind in kinds)]
    rows = []
    for result in evaluations[0].sequences:
        sequence = escape(result.sequence)
        for row in sorted(result.objects, key=lambda row: row.id):
            cells = [_cell(row.mean, bar=True)]
            cells += [_cell(c.objects[result.sequence][row.id][0], sign="+") for c in comparisons]
            cells += [_cell(value) for value in (*row.J, *row.F) if not comparisons]
            name = f"{sequence}_{row.id}"
            rows.append(f'<tr><td data-value="{name}"><a href="#{sequence}">{name}</a>{"".join(cells)}')
    head = "".join(f"<th><button>{escape(column)}</button>" for column in heads)
    return (f'<div class="wide tall"><table class=sortable><thead><tr>{head}</thead><tbody>{"".join(rows)}</tbody>'
            "</table></div>")


def _cell(value: float, bar: bool = False, sign: str = "") -> str:
    """A number, over a bar of its length where asked for."""
    style = f' class=bar style="--share:{100 * value:.1f}%"' if bar else ""
    return f"<td data-value={value}{style}>{value:{sign}.3f}"


def _sequence_section(names: Sequence[str], results: Sequence[SequenceResult], evaluations: Sequence[Evaluation],
                      truth: GroundTruth, images: Path) -> str:
    """Curves and worst frames of one sequence."""
    sequence = results[0]
    worst = worst_frames(results)
    lines = list(_lines(names, results))
    legend = "".join(f"{_key(color)}{escape(name)}" for name, color, _ in lines)
    charts = "".join(_chart(metric, sequence.frames, [(color, values[metric]) for _, color, values in lines], worst)
                     for metric in "JF")
    missing = [f"{escape(name)}: {len(result.missing)} missing frames counted as empty masks"
               for name, result in zip(names, results) if result.missing]
    warning = f"<p class=warning>{'; '.join(missing)}</p>" * bool(missing)
    folders = [folder / sequence.sequence for folder in (truth.masks, *(e.results for e in evaluations))]
    figures = "".join(_figures(names, results, t, folders, images / sequence.sequence) for t in worst)
    name = escape(sequence.sequence)
    return (f"<section id='{name}'><h3>{name}</h3>{warning}<p>{legend}</p><div class=charts>{charts}</div>"
            f"<div{' class=single' * (len(names) == 1)}>{figures}</div></section>")


def _figures(names: Sequence[str], results: Sequence[SequenceResult], t: int, folders: Sequence[Path],
             images: Path) -> str:
    """Frame number `t`: the truth and the results beside each other."""
    frame = results[0].frames[t]
    captions = ["ground truth"]
    for name, result in zip(names, results):
        J, F = (np.nanmean(values[:, t]) for values in (result.scores.J, result.scores.F))
        captions.append(f"{escape(name)}: J {J:.3f}, F {F:.3f}")
    figures = [f"<figure><img alt='{caption}' src='{picture}'><figcaption>{escape(frame)} {caption}</figcaption>"
               "</figure>" for caption, picture in zip(captions, _pictures(images / frame, folders))]
    return f"<div class=frame>{''.join(figures)}</div>"


def _lines(names: Sequence[str], results: Sequence[SequenceResult]) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    """Name, colour and J and F [T] of what a chart compares: the results, or the objects of the only one."""
    if len(results) > 1:
        for name, color, result in zip(names, _colors(len(names)), results):
            yield name, color, {m: _mean(getattr(result.scores, m)) for m in "JF"}
        return
    scores = results[0].scores
    for k, J, F in zip(scores.ids, scores.J, scores.F):
        yield f"object {k}", "#{:02x}{:02x}{:02x}".format(*DAVIS_PALETTE[k]), {"J": J, "F": F}


def _mean(values: np.ndarray) -> np.ndarray:
    """[N,T] to [T]: the mean over the objects that are scored, NaN where none is."""
    return np.ma.masked_invalid(values).mean(axis=0).filled(np.nan)


def worst_frames(results: Sequence[SequenceResult]) -> list[int]:
    """Numbers of the frames with the lowest J&F of any result, an eighth of the sequence apart, in order of time."""
    values = np.min([_mean(result.scores.J) + _mean(result.scores.F) for result in results], axis=0)
    apart = len(values) // 8
    chosen: list[int] = []
    for t in np.argsort(values)[:np.count_nonzero(~np.isnan(values))]:
        if len(chosen) < WORST_FRAMES and all(abs(t - other) > apart for other in chosen):
            chosen.append(int(t))
    return sorted(chosen)


def _chart(metric: str, frames: Sequence[str], lines: list[tuple[str, np.ndarray]], marked: Sequence[int]) -> str:
    """Curves over the frames as SVG; a value that is not scored leaves a gap."""
    width, height = 460, 132  # [SVG units]
    left, right, top, bottom = 28, width - 8, 18, height - 18

    def place(t: int, value: float) -> str:
        return f"{left + (right - left) * t / max(1, len(frames) - 1):.1f} {bottom - (bottom - top) * value:.1f}"

    parts = [f"<text x=0 y=11 style='font-weight:700'>{metric}</text>"]
    for level in (0, 0.5, 1):
        x, y = place(0, level).split()
        parts.append(f"<path d='M{x} {y}H{right}' stroke='#d8dee4'/>"
                     f"<text x=22 y={float(y) + 4} text-anchor=end>{level}</text>")
    parts += [f"<text x={left} y={height - 4}>{escape(frames[0])}</text>",
              f"<text x={right} y={height - 4} text-anchor=end>{escape(frames[-1])}</text>"]
    for color, values in lines:
        scored = ~np.isnan(values)
        path = "".join(f"{'L' if t and scored[t - 1] else 'M'}{place(t, values[t])}" for t in np.flatnonzero(scored))
        parts.append(f"<path d='{path}' fill=none stroke='{color}' stroke-width=1.8 stroke-linejoin=round />")
        for t in marked:
            if scored[t]:
                x, y = place(t, values[t]).split()
                parts.append(f"<circle cx={x} cy={y} r=3.5 fill='{color}'>"
                             f"<title>{escape(frames[t])}: {values[t]:.3f}</title></circle>")
    return f"<svg viewBox='0 0 {width} {height}' role=img aria-label='{metric} over time'>{''.join(parts)}</svg>"


def _pictures(image: Path, folders: Sequence[Path]) -> Iterator[str]:
    """The masks of one frame drawn on it (on grey where there is no picture), as data URIs: truth, then results.

    On the results the outline of the truth is yellow.
    """
    masks = [files_by_stem(folder, MASK_SUFFIXES) for folder in folders]
    truth = read_mask(masks[0][image.name])
    H, W = truth.shape
    found = files_by_stem(image.parent).get(image.name)
    picture = read_frame(found) if found else np.full((H, W, 3), 96, np.uint8)
    size = (PICTURE_WIDTH, max(1, round(H * PICTURE_WIDTH / W)))
    shrink = lambda mask: cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    picture, truth = cv2.resize(picture, size, interpolation=cv2.INTER_AREA), shrink(truth)
    yield _as_uri(overlay(picture, truth))
    outline = cv2.morphologyEx(truth, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    for files in masks[1:]:
        file = files.get(image.name)
        drawn = overlay(picture, shrink(read_mask(file) if file else np.zeros((H, W), np.uint8)))
        drawn[outline] = (255, 214, 10)
        yield _as_uri(drawn)


def _as_uri(picture: np.ndarray) -> str:
    """RGB [h,w,3] as JPEG in a data URI."""
    data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes()
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _colors(n: int) -> list[str]:
    return [RESULT_COLORS[i % len(RESULT_COLORS)] for i in range(n)]


def _key(color: str) -> str:
    return f"<span class=key style='background:{color}'></span>"
