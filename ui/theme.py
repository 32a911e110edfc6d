"""How the app looks: a quiet theme with one accent colour, and the style sheet of our own parts."""

from __future__ import annotations

import gradio as gr

# The fonts of the reader's own system: nothing is fetched from elsewhere.
_SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")

ACCENT = gr.themes.Color(
    name="lagoon",
    c50="#effaf8",
    c100="#d5f1ec",
    c200="#aee2da",
    c300="#7ccdc3",
    c400="#48b1a6",
    c500="#27948a",
    c600="#177870",
    c700="#14605b",
    c800="#134d4a",
    c900="#12403e",
    c950="#062625",
)


def theme() -> gr.themes.Base:
    """The theme, in light and in dark."""
    return gr.themes.Base(
        primary_hue=ACCENT,
        secondary_hue=ACCENT,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=_SANS,
        font_mono=_MONO,
    ).set(
        body_background_fill="#f6f7f8",
        body_background_fill_dark="#0e1319",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_shadow_dark="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_text_color="*body_text_color",
        block_label_text_color_dark="*body_text_color",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_title_text_weight="550",
        block_title_text_size="*text_sm",
        block_info_text_color="*body_text_color_subdued",
        block_info_text_color_dark="*body_text_color_subdued",
        body_text_color="#1b2530",
        body_text_color_dark="#e3e8ee",
        body_text_color_subdued="#5b6875",
        body_text_color_subdued_dark="#9aa7b4",
        border_color_primary="#dfe4e9",
        border_color_primary_dark="#2a333e",
        input_background_fill="#ffffff",
        input_background_fill_dark="#131a22",
        input_border_color="#cfd6dd",
        input_border_color_dark="#33404d",
        input_border_width="1px",
        input_border_width_dark="1px",
        input_shadow="none",
        input_shadow_focus="0 0 0 3px #27948a33",
        input_border_color_focus="*primary_500",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="#eef1f3",
        button_secondary_background_fill_dark="#1a222c",
        button_secondary_background_fill_hover_dark="#232d39",
        button_secondary_border_color="#cfd6dd",
        button_secondary_border_color_dark="#33404d",
        button_border_width="1px",
        button_border_width_dark="1px",
        button_primary_border_color="*primary_600",
        button_primary_border_color_dark="*primary_600",
        slider_color="*primary_500",
        slider_color_dark="*primary_500",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_600",
        checkbox_border_color_selected="*primary_600",
        checkbox_border_color_selected_dark="*primary_600",
        checkbox_label_background_fill="#ffffff",
        checkbox_label_background_fill_hover="#f3f6f7",
        checkbox_label_background_fill_selected="#effaf8",
        checkbox_label_background_fill_dark="#131a22",
        checkbox_label_background_fill_hover_dark="#1a232d",
        checkbox_label_background_fill_selected_dark="#112c2c",
        checkbox_label_border_color="#cfd6dd",
        checkbox_label_border_color_dark="#33404d",
        checkbox_label_text_color_selected="*body_text_color",
        checkbox_label_text_color_selected_dark="*body_text_color",
    )


CSS = """
.gradio-container { --card: #ffffff; --well: #eef1f4; }
.dark .gradio-container, .gradio-container.dark { --card: #151c24; --well: #0f151b; }
.gradio-container .app { padding: 20px 24px 40px !important; max-width: 1320px !important; width: 100%;
  margin: 0 auto !important; }
.rc-card .form { background: transparent; border: 0; gap: 14px; overflow: visible; }
footer { opacity: .7; }

/* Header */
.rc-header { display: flex; align-items: baseline; gap: 14px; flex-wrap: wrap; padding: 4px 2px 2px; }
.rc-header h1 { font-size: 1.5rem; font-weight: 650; letter-spacing: -.01em; margin: 0; color: var(--body-text-color); }
.rc-header p { margin: 0; font-size: .975rem; color: var(--body-text-color-subdued); }

/* Cards: one a step */
.rc-row { gap: 18px !important; align-items: stretch; }
.rc-card { background: var(--card); border: 1px solid var(--border-color-primary); border-radius: 12px;
  padding: 18px 20px 20px !important; gap: 14px !important; }
.rc-step { display: flex; align-items: center; gap: 10px; }
.rc-step h2 { margin: 0; font-size: 1.05rem; font-weight: 620; color: var(--body-text-color); }
.rc-step .n { flex: none; width: 24px; height: 24px; border-radius: 50%; display: grid; place-items: center;
  font-size: .8rem; font-weight: 650; color: var(--primary-700); background: var(--primary-100); }
.dark .rc-step .n { color: var(--primary-200); background: var(--primary-800); }
.rc-step p { margin: 0 0 0 auto; font-size: .825rem; color: var(--body-text-color-subdued); text-align: right; }
.rc-caption { font-size: .85rem; color: var(--body-text-color-subdued); margin: 0; line-height: 1.5; }
.rc-card .prose, .rc-card .html-container { padding: 0; }

/* Wells: where pictures appear */
.rc-well { position: relative; background: var(--well); border-radius: 8px; overflow: hidden;
  display: grid; place-items: center; }
.rc-well img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; display: block; }
.rc-well [hidden] { display: none !important; }
.rc-empty { position: absolute; inset: 0; display: grid; place-items: center; text-align: center; padding: 12px 18px;
  margin: 0; font-size: .85rem; line-height: 1.45; color: var(--body-text-color-subdued); pointer-events: none; }
.rc-empty[hidden] { display: none; }
.rc-label { font-size: .8rem; font-weight: 550; margin: 0 0 5px; color: var(--body-text-color); }
.rc-depth .rc-well { flex: 1 1 240px; min-height: 240px; }
.rc-warp .rc-well, .rc-mask .rc-well { aspect-ratio: 16 / 10; max-height: 420px; }
.rc-preview .rc-well { aspect-ratio: 16 / 10; max-height: 300px; }
.rc-grow, .rc-grow .html-container { flex: 1 1 auto !important; display: flex; flex-direction: column; }
.rc-depth-row { gap: 16px !important; align-items: center; flex-wrap: nowrap !important; }
.rc-card .rc-clip { flex: 1 1 300px !important; height: auto !important; min-height: 300px; }
#amount input[type=range]::-webkit-slider-thumb { box-shadow: 0 0 0 1px var(--primary-600), 0 1px 3px #0003; }
.dark .rc-card input[type=range] { --neutral-200: #33404d; }
#amount { padding-bottom: 4px; }
.rc-card input[type=range]:focus-visible { outline: 2px solid var(--primary-500); outline-offset: 4px; }
.rc-card:has(.rc-seen:not(.rc-away)) .rc-clip { flex-basis: 96px !important; min-height: 96px; height: 96px; }
.rc-clip video { background: var(--well); }
.rc-clip, .rc-clip .wrap { border-radius: 8px; }
/* trimming in the page needs FFmpeg, see static/scissors.js */
.rc-clip button[aria-label^="Trim"], .rc-clip button[aria-label^="Reset"] { display: none; }
.rc-clip { border: 1px dashed var(--input-border-color) !important; background: var(--well) !important; }

#mask-picture { background: var(--well); border-radius: 8px; overflow: hidden; }
#mask-picture img { cursor: crosshair; }
.rc-clicks { align-items: center; flex-wrap: nowrap; }

/* Examples */
.rc-gallery { display: flex; gap: 14px; overflow-x: auto; padding: 2px; }
.rc-gallery button { flex: 1 0 270px; max-width: 440px; display: flex; flex-direction: column; padding: 0;
  border: 1px solid var(--border-color-primary); border-radius: 8px; background: var(--block-background-fill);
  overflow: hidden; text-align: left; cursor: pointer; }
.rc-gallery button:hover, .rc-gallery button:focus-visible { border-color: var(--primary-500); }
.rc-gallery img { display: block; width: 100%; height: auto; aspect-ratio: 10 / 3.6; object-fit: cover;
  object-position: 50% 15%; }
.rc-gallery span { display: flex; gap: 8px; padding: 6px 10px 7px; font-size: .8rem; color: var(--body-text-color); }
.rc-strip { display: flex; gap: 10px; overflow-x: auto; padding: 2px; }
.rc-strip button { flex: none; width: 112px; padding: 0; border: 1px solid var(--border-color-primary);
  border-radius: 8px; overflow: hidden; background: var(--card); cursor: pointer; text-align: left; }
.rc-strip button:hover { border-color: var(--primary-500); }
.rc-strip button:focus-visible, .rc-bar button:focus-visible, .rc-divider:focus-visible {
  outline: 2px solid var(--primary-500); outline-offset: 2px; }
.rc-strip img { display: block; width: 100%; height: 64px; object-fit: cover; object-position: 50% 20%; }
.rc-strip span { display: block; padding: 4px 8px 5px; font-size: .75rem; color: var(--body-text-color);
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }

/* Status: every wait, in words */
.rc-away { display: none !important; }
/* What Gradio hides of its own progress stays on the page otherwise, and screen readers read its seconds. */
.gradio-container [data-testid=status-tracker].hide { display: none; }
.gradio-container .prose .rc-status * { color: inherit; }
#rc-server { position: sticky; top: 0; z-index: 50; padding: 10px 16px; text-align: center;
  font: 500 .9rem/1.4 var(--font); color: #3c2a00; background: #ffe9b8; border-bottom: 1px solid #e7c877; }
#rc-server[hidden] { display: none; }
.rc-status { font-size: .875rem; line-height: 1.45; min-height: 1.3em; }
.rc-status .rc-track { height: 4px; border-radius: 2px; background: var(--well); overflow: hidden; margin-top: 7px; }
.rc-status .rc-track i { display: block; height: 100%; background: var(--primary-500); border-radius: 2px;
  transition: width .3s; }
.gradio-container .prose .rc-status { color: var(--body-text-color-subdued); }
.gradio-container .prose .rc-status.busy { color: var(--body-text-color); }
.gradio-container .prose .rc-status.done { color: var(--primary-700); }
.dark .gradio-container .prose .rc-status.done {
  color: var(--primary-300); }
.gradio-container .prose .rc-status.error { color: #8f2418; background: #fdf1ef; border: 1px solid #f2cdc6;
  border-radius: 8px; padding: 9px 12px; }
.dark .gradio-container .prose .rc-status.error { color: #ffc9bf; background: #331a17; border-color: #5d2d26; }

.gradio-container .prose .rc-status.warning { color: #7a4a05; background: #fff6e5; border: 1px solid #f2dcb0;
  border-radius: 8px; padding: 7px 12px; margin-top: 8px; }
.dark .gradio-container .prose .rc-status.warning { color: #f7d9a0; background: #2e2413; border-color: #5a4620; }
.rc-unknown svg { display: block; width: 100%; height: 34px; background: var(--well); border-radius: 4px;
  margin: 8px 0 4px; }
.rc-unknown rect { fill: var(--primary-400); }
.rc-unknown span { font-size: .78rem; color: var(--body-text-color-subdued); }

/* The camera editor */
.rc-camera { gap: 22px !important; align-items: flex-start; }
.rc-editor .rc-well { height: 430px; user-select: none; touch-action: none; }
.rc-editor .rc-well:focus-visible { outline: 2px solid var(--primary-500); outline-offset: 2px; }
.rc-cloud-view { position: absolute; inset: 0; cursor: grab; }
.rc-cloud-view:active { cursor: grabbing; }
.picking .rc-cloud-view, .picking .rc-cloud-view * { cursor: crosshair !important; }
.rc-overlay { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; z-index: 2; }
.rc-overlay path { fill: none; stroke-linejoin: round; stroke-linecap: round; vector-effect: non-scaling-stroke; }
.rc-path-under { stroke: #ffffffcc; stroke-width: 5; }
.rc-path-kept { stroke: #7a5af8aa; stroke-width: 2; stroke-dasharray: 5 4; }
.rc-path { stroke: #0f8a7e; stroke-width: 2.5; }
.rc-source { stroke: #1b2530; stroke-width: 1.5; stroke-dasharray: 3 3; }
.dark .rc-source { stroke: #e3e8ee; }
.rc-key { stroke: #0f8a7e; stroke-width: 1.4; }
.rc-key.on { stroke: #d9480f; stroke-width: 2; }
.rc-now { stroke: #2b59c3; stroke-width: 2; }
.rc-aim { stroke: #d9480f; stroke-width: 1.4; stroke-dasharray: 5 4; }
.rc-overlay .rc-frame { stroke: #1b253088; stroke-width: 1; stroke-dasharray: 2 4; }
.dark .rc-overlay .rc-frame { stroke: #e3e8ee88; }
.rc-overlay .rc-mask { fill: #0c1117aa; }
.rc-grip { fill: transparent; pointer-events: all; cursor: move; }
.picking .rc-grip { pointer-events: none; }
.rc-handle { fill: #fff; stroke: #0f8a7e; stroke-width: 2.5; }
.rc-handle.on { stroke: #d9480f; }
.rc-handle.target { fill: #d9480f; stroke: #fff; }
.rc-number { font-size: 12px; font-weight: 650; fill: #12403e; paint-order: stroke; stroke: #ffffffdd;
  stroke-width: 3px; }
.rc-editor button, .rc-editor input, .rc-editor select { font: inherit; font-size: .82rem;
  color: var(--body-text-color); background: var(--button-secondary-background-fill); border-radius: 8px;
  border: 1px solid var(--button-secondary-border-color); }
.rc-editor button { padding: 5px 8px; cursor: pointer; }
.rc-editor button:hover:not(:disabled) { background: var(--button-secondary-background-fill-hover); }
.rc-editor button:disabled, .rc-editor input:disabled, .rc-editor select:disabled { opacity: .45; cursor: default; }
.rc-editor button:focus-visible, .rc-editor input:focus-visible, .rc-editor select:focus-visible {
  outline: 2px solid var(--primary-500); outline-offset: 1px; }
.rc-editor button[aria-pressed=true] { border-color: var(--primary-500); color: var(--primary-700);
  background: var(--checkbox-label-background-fill-selected); }
.dark .rc-editor button[aria-pressed=true] { color: var(--primary-200); }
.rc-editor input[type=number] { width: 74px; padding: 5px 6px; background: var(--input-background-fill);
  font-variant-numeric: tabular-nums; }
.rc-editor select { padding: 5px 8px; max-width: 230px; background: var(--input-background-fill); }
.rc-editor label { font-size: .82rem; color: var(--body-text-color); display: inline-flex; align-items: center;
  gap: 7px; }
.rc-tools { display: flex; flex-wrap: wrap; gap: 6px; margin-bottom: 10px; }
.rc-playbar { margin-top: 10px; flex-wrap: nowrap; }
.rc-playbar input[type=range] { flex: 1 1 120px; min-width: 80px; padding: 0; accent-color: var(--primary-600); }
.rc-playbar .rc-time { white-space: nowrap; }
.rc-editor-words { margin: 6px 0 0; min-height: 1.35em; font-size: .82rem; color: var(--primary-700); }
.dark .rc-editor-words { color: var(--primary-300); }
.rc-keys-row { display: flex; align-items: center; gap: 8px; flex-wrap: wrap; margin: 6px 0 10px; font-size: .82rem; }
.rc-keys-row[hidden] { display: none; }
.rc-keys { display: flex; flex-wrap: wrap; gap: 5px; }
.rc-keys button { min-width: 30px; padding: 4px 6px; }
.rc-which { min-width: 112px; color: var(--body-text-color); font-weight: 550; }
.rc-inspector { display: flex; flex-wrap: wrap; gap: 8px 20px; }
.rc-place { display: flex; align-items: center; gap: 6px; font-size: .82rem; color: var(--body-text-color); }
.rc-place span { min-width: 58px; }
.rc-place input { width: 66px !important; }
.rc-numbers { display: flex; flex-wrap: wrap; gap: 8px 16px; }
.rc-travel { display: flex; flex-wrap: wrap; gap: 10px 18px; align-items: center; margin-top: 12px; }
.rc-curve { margin-top: 10px; max-width: 420px; }
.rc-curve[hidden] { display: none; }
.rc-curve svg { display: block; width: 100%; touch-action: none; }
.rc-curve p { margin: 2px 0 0; font-size: .78rem; color: var(--body-text-color-subdued); }
.rc-curve-well { fill: var(--well); }
.rc-curve-line { fill: none; stroke: var(--primary-600); stroke-width: 2; }
.rc-curve-now { fill: var(--body-text-color); }
.rc-curve-point { fill: var(--primary-600); stroke: #fff; stroke-width: 2; cursor: grab; outline-offset: 2px; }
.rc-curve-point.on { fill: var(--primary-800); }
.rc-views { position: absolute; z-index: 3; top: 8px; right: 8px; display: flex; gap: 5px; }
.rc-views button { padding: 3px 8px !important; font-size: .76rem !important; }

/* Controls */
.rc-buttons { gap: 10px !important; }
.rc-advanced { border: 1px solid var(--border-color-primary) !important; border-radius: 8px; padding: 0 !important; }
.rc-advanced > button { padding: 10px 14px; }
.rc-advanced > div { padding: 0 14px 14px; }
.rc-fields { gap: 12px !important; align-items: flex-end; }
.rc-prompt { gap: 10px !important; align-items: flex-end; flex-wrap: nowrap !important; }
#suggest { height: 40px; min-height: 0; padding: 0 10px; font-size: .875rem; font-weight: 550; }
.rc-optional:not(:has(.rc-caption)):not(:has(.rc-status)) { display: none !important; }

/* The result */
.rc-stage { display: grid; gap: 12px; --divider: 50%; }
.rc-stage figure { margin: 0; min-width: 0; }
.rc-stage figcaption { font-size: .8rem; font-weight: 550; margin: 0 0 5px; color: var(--body-text-color); }
.rc-stage video { width: 100%; aspect-ratio: var(--aspect); max-height: 62vh; object-fit: contain; display: block;
  background: var(--well); border-radius: 8px; }
.rc-stage[data-layout=side] { grid-template-columns: 1fr 1fr; }
.rc-stage[data-layout=side] .rc-divider { display: none; }
.rc-stage[data-layout=over] { position: relative; grid-template-columns: 1fr; margin: 0 auto; width: 100%;
  max-width: calc(62vh * var(--ratio, 1.78)); }
.rc-stage[data-layout=over] figure { grid-area: 1 / 1; }
.rc-stage[data-layout=over] figure:first-child { clip-path: inset(0 calc(100% - var(--divider)) 0 0); z-index: 1; }
.rc-stage[data-layout=over] figure:nth-child(2) figcaption { text-align: right; }
.rc-divider { position: absolute; z-index: 2; top: 0; bottom: 0; left: calc(var(--divider) - 14px); width: 28px;
  cursor: ew-resize; touch-action: none; }
.rc-divider::before { content: ""; position: absolute; left: 13px; top: 24px; bottom: 0; width: 2px; background: #fff;
  box-shadow: 0 0 0 1px #0005; }
.rc-divider::after { content: "⟷"; position: absolute; left: 0; top: calc(50% - 3px); width: 28px; height: 28px;
  border-radius: 50%; background: #fff; color: #1b2530; display: grid; place-items: center; font-size: 14px;
  box-shadow: 0 1px 4px #0006; }
.rc-bar { display: flex; align-items: center; gap: 10px; flex-wrap: wrap; margin-top: 12px; }
.rc-bar button { font: inherit; font-size: .85rem; padding: 6px 14px; border-radius: 8px; cursor: pointer;
  color: var(--body-text-color); background: var(--button-secondary-background-fill);
  border: 1px solid var(--button-secondary-border-color); }
.rc-bar button:hover { background: var(--button-secondary-background-fill-hover); }
.rc-bar button[aria-pressed=true] { border-color: var(--primary-500); color: var(--primary-700);
  background: var(--checkbox-label-background-fill-selected); }
.dark .rc-bar button[aria-pressed=true] { color: var(--primary-200); }
.rc-bar .rc-play { min-width: 76px; }
.rc-bar .rc-scrub { flex: 1 1 160px; min-width: 120px; accent-color: var(--primary-600); }
.rc-bar .rc-time { font-size: .8rem; font-variant-numeric: tabular-nums; color: var(--body-text-color-subdued);
  min-width: 92px; }
.rc-bar .rc-modes { display: flex; gap: 6px; }
.rc-figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px 18px;
  margin: 4px 0 12px; }
.rc-figures div { border-top: 1px solid var(--border-color-primary); padding-top: 8px; }
.rc-figures dt { font-size: .78rem; color: var(--body-text-color-subdued); }
.rc-figures dd { margin: 2px 0 0; font-size: 1rem; font-weight: 600; font-variant-numeric: tabular-nums;
  color: var(--body-text-color); overflow-wrap: anywhere; }
.rc-figures dd small { display: block; font-weight: 400; font-size: .78rem; color: var(--body-text-color-subdued); }
.gradio-container .secondary-wrap input { text-overflow: ellipsis; padding-right: 1.8em !important; }

@media (max-width: 760px) {
  .gradio-container .app { padding: 14px 12px 32px !important; }
  .rc-card { padding: 14px !important; }
  .rc-editor .rc-well { height: 320px; }
  .rc-stage[data-layout=side] { grid-template-columns: 1fr; }
  .rc-step p { display: none; }
  .rc-actions { flex-wrap: nowrap !important; }
  .rc-actions button { min-width: 0 !important; }
  .rc-paint-buttons { display: grid !important; grid-template-columns: 3fr 1fr; }
  #paint, #paint > * { height: 300px !important; }
  .rc-figures { grid-template-columns: 1fr 1fr; }
  .rc-bar .rc-time { order: 5; }
}
"""
