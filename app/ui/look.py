"""How the pages look: named colours for dark and light, from which the theme and the style sheet are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

DARK = {
    "ground": "#14110f",
    "panel": "#1d1916",
    "raised": "#29231e",
    "line": "#3b332c",
    "edge": "#83725f",
    "text": "#f3ebe1",
    "quiet": "#bcaf9f",
    "accent": "#e4a86f",
    "on-accent": "#21160c",
    "accent-soft": "#3a2a1c",
    "fault": "#ff9d86",
    "fault-ground": "#3a1c16",
    "good": "#9ccf9b",
}
LIGHT = {
    "ground": "#f4efe7",
    "panel": "#fffdf9",
    "raised": "#f5ede1",
    "line": "#ddd2c3",
    "edge": "#8d7b66",
    "text": "#2a211a",
    "quiet": "#665849",
    "accent": "#94491a",
    "on-accent": "#fffaf4",
    "accent-soft": "#f6e2cf",
    "fault": "#9b2313",
    "fault-ground": "#fde9e4",
    "good": "#2f6a34",
}
TEXT_PAIRS = (
    ("text", "ground"),
    ("text", "panel"),
    ("text", "raised"),
    ("text", "accent-soft"),
    ("quiet", "ground"),
    ("quiet", "panel"),
    ("quiet", "raised"),
    ("accent", "ground"),
    ("accent", "panel"),
    ("accent", "raised"),
    ("on-accent", "accent"),
    ("fault", "fault-ground"),
    ("fault", "panel"),
    ("good", "panel"),
)
"""Letters and what they stand on: WCAG AA wants 4.5 to 1."""
EDGE_PAIRS = (
    ("edge", "panel"),
    ("edge", "ground"),
    ("accent", "ground"),
    ("accent", "panel"),
    ("edge", "raised"),
)
"""Edges of controls and marks of the focus: 3 to 1."""

SANS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Consolas", "monospace"]

MEANS = {
    "body_background_fill": "ground",
    "body_text_color": "text",
    "body_text_color_subdued": "quiet",
    "background_fill_primary": "panel",
    "background_fill_secondary": "ground",
    "border_color_primary": "line",
    "border_color_accent": "accent",
    "border_color_accent_subdued": "line",
    "color_accent_soft": "accent-soft",
    "link_text_color": "accent",
    "link_text_color_hover": "accent",
    "link_text_color_active": "accent",
    "link_text_color_visited": "accent",
    "block_background_fill": "panel",
    "block_border_color": "line",
    "block_info_text_color": "quiet",
    "block_label_background_fill": "panel",
    "block_label_text_color": "quiet",
    "block_title_text_color": "text",
    "block_title_background_fill": "panel",
    "block_label_border_color": "line",
    "panel_background_fill": "panel",
    "panel_border_color": "line",
    "accordion_text_color": "text",
    "input_background_fill": "raised",
    "input_background_fill_focus": "raised",
    "input_background_fill_hover": "raised",
    "input_border_color": "edge",
    "input_border_color_focus": "accent",
    "input_border_color_hover": "edge",
    "input_placeholder_color": "quiet",
    "checkbox_background_color": "raised",
    "checkbox_background_color_selected": "accent",
    "checkbox_border_color": "edge",
    "checkbox_border_color_selected": "accent",
    "checkbox_label_background_fill": "raised",
    "checkbox_label_background_fill_selected": "accent-soft",
    "checkbox_label_text_color": "text",
    "checkbox_label_text_color_selected": "text",
    "button_primary_background_fill": "accent",
    "button_primary_background_fill_hover": "accent",
    "button_primary_text_color": "on-accent",
    "button_primary_text_color_hover": "on-accent",
    "button_primary_border_color": "accent",
    "button_secondary_background_fill": "raised",
    "button_secondary_background_fill_hover": "accent-soft",
    "button_secondary_text_color": "text",
    "button_secondary_text_color_hover": "text",
    "button_secondary_border_color": "edge",
    "slider_color": "accent",
    "loader_color": "accent",
    "error_background_fill": "fault-ground",
    "error_text_color": "fault",
    "error_border_color": "fault",
    "code_background_fill": "raised",
    "table_text_color": "text",
    "table_border_color": "line",
    "table_even_background_fill": "panel",
    "table_odd_background_fill": "raised",
}
"""Gradio's names and ours."""
SHAPES = {
    "block_radius": "14px",
    "container_radius": "14px",
    "input_radius": "9px",
    "button_large_radius": "11px",
    "button_medium_radius": "10px",
    "button_small_radius": "8px",
    "block_border_width": "0px",
    "block_shadow": "none",
    "block_padding": "12px 14px",
    "layout_gap": "14px",
    "form_gap_width": "0px",
    "block_title_text_weight": "600",
    "block_title_text_size": "13px",
    "block_info_text_size": "12px",
    "input_border_width": "1px",
    "button_primary_shadow": "none",
    "button_secondary_shadow": "none",
}


def theme() -> Any:
    """Gradio's theme in our colours; letters are those of the system, so nothing is fetched."""
    import gradio

    made = gradio.themes.Base(font=SANS, font_mono=MONO, text_size="md", spacing_size="md", radius_size="lg")
    pairs = {**{name: LIGHT[own] for name, own in MEANS.items()}, **SHAPES}
    pairs |= {f"{name}_dark": DARK[own] for name, own in MEANS.items()}
    for name, value in pairs.items():
        setattr(made, name, value)
    made.color_accent = "var(--sf-accent)"
    return made


def css() -> str:
    """The style sheet, below the colours as variables."""
    light = "".join(f"--sf-{name}:{value};" for name, value in LIGHT.items())
    dark = "".join(f"--sf-{name}:{value};" for name, value in DARK.items())
    return f":root{{{light}}}\n.dark{{{dark}}}\n{(FOLDER / 'pages.css').read_text(encoding='utf-8')}"
