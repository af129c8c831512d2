"""How the page looks: a theme without fonts to fetch, a little CSS, and the tables of probabilities."""

import html
from collections.abc import Sequence

import gradio as gr

from .actions import Row, percent

#: Fonts that systems have; simplified Chinese is named, or a browser may take Japanese shapes.
FONTS = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "Noto Sans SC", "sans-serif")

CSS = """
.gradio-container { width: 100% !important; max-width: 1080px !important; margin: 0 auto !important; }
.gradio-container main { width: 100%; }
.r2d2-head h1 { font-size: 1.6rem; margin: 0.4rem 0 0.1rem; }
.r2d2-head p, .r2d2-status p { margin: 0.15rem 0; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.r2d2-status p.r2d2-error { color: var(--error-text-color); background: var(--error-background-fill);
  border: 1px solid var(--error-border-color); border-radius: 8px; padding: 0.5rem 0.75rem; }

/* figures stand below the pictures and are not cut */
.r2d2-gallery .grid-wrap { max-height: none; }
.r2d2-gallery .grid-container { align-items: start; }
.r2d2-gallery .thumbnail-item { aspect-ratio: auto; width: 100%; overflow: hidden; }
.r2d2-gallery .thumbnail-item img { aspect-ratio: 1; width: 100%; height: auto; object-fit: contain; background: #fff; }
.r2d2-gallery .thumbnail-item .caption-label { position: static; display: block; max-width: none; width: 100%;
  box-sizing: border-box; padding: 0.35rem 0.5rem 0.45rem; border: 0; border-radius: 0; text-align: left;
  white-space: pre-line; overflow-wrap: anywhere; font-size: 0.8rem; line-height: 1.45;
  font-variant-numeric: tabular-nums; }
@media (max-width: 600px) {
  .r2d2-gallery .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tab-container button { padding-left: 0.6rem !important; padding-right: 0.6rem !important; }
}

/* after gr.HTML's own rules for tables */
.r2d2-rows table { width: 100%; border-collapse: collapse; table-layout: fixed; border: 0; }
.r2d2-rows table th { border: 0; padding: 0.45rem 0.5rem; text-align: left; font-weight: 400; line-height: 1.3;
  color: var(--body-text-color-subdued); }
.r2d2-rows table td { border: 0; border-top: 1px solid var(--border-color-primary); padding: 0.45rem 0.5rem;
  text-align: left; vertical-align: middle; overflow-wrap: anywhere; }
.r2d2-rows table .r2d2-figure { text-align: right; width: 5.8rem; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.r2d2-bar { height: 0.35rem; border-radius: 3px; background: var(--border-color-primary); margin-top: 0.3rem; }
.r2d2-bar span { display: block; height: 100%; border-radius: 3px; background: var(--color-accent); }
"""


def theme() -> gr.themes.Base:
    """Gradio's soft theme in the system's fonts, with plain labels and a button that white text can be read on."""
    soft = gr.themes.Soft(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=("ui-monospace", "monospace"))
    return soft.set(
        block_title_background_fill="none",
        block_title_padding="0",
        block_title_text_color="*body_text_color",
        block_title_text_weight="500",
        block_label_background_fill="none",
        block_label_text_color="*body_text_color_subdued",
        block_border_width="1px",
        body_text_color_subdued="*neutral_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
    )


def status(*lines: str, error: bool = False) -> str:
    """Lines of plain text as HTML, for what happened or what to change."""
    kind = ' class="r2d2-error" role="alert"' if error else ""
    return "".join(f"<p{kind}>{html.escape(line)}</p>" for line in lines)


def rows_table(rows: Sequence[Row], heading: str) -> str:
    """A line for each text: a bar, the probability and, where known, the cosine."""
    if not rows:
        return ""
    with_cosine = any(row.cosine is not None for row in rows)
    cosine = '<th class="r2d2-figure">余弦<br>cosine</th>' if with_cosine else ""
    lines = [f'<tr><th></th><th class="r2d2-figure">{heading}</th>{cosine}</tr>']
    for row in rows:
        bar = f'<div class="r2d2-bar"><span style="width:{100 * row.probability:.1f}%"></span></div>'
        cell = f'<td class="r2d2-figure">{row.cosine:.3f}</td>' if row.cosine is not None else ""
        figure = html.escape(percent(row.probability))
        lines.append(f'<tr><td>{html.escape(row.text)}{bar}</td><td class="r2d2-figure">{figure}</td>{cell}</tr>')
    return f"<table>{''.join(lines)}</table>"
