"""The terms of models that have some, and the box that accepts them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from pipeline.models import table
from pipeline.prior.fast import FEW_STEPS


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of what is chosen in a dropdown, and the box that accepts them; put away where there are none.

    model_of: the model that a choice means, "" for none.
    """

    choice: gr.Dropdown
    column: gr.Column
    words: gr.HTML
    box: gr.Checkbox
    model_of: Callable[[Any], str]


def ask_terms(choice: gr.Dropdown, elem_id: str, model_of: Callable[[Any], str] | None = None) -> Terms:
    """The place for the terms of what is chosen in a dropdown, below it. model_of: None for `chosen_model`."""
    model_of = model_of or chosen_model
    model = model_of(choice.value)
    with gr.Column(elem_classes=terms_classes(model), elem_id=f"{elem_id}-terms") as column:
        words = gr.HTML(terms_html(model))
        box = gr.Checkbox(label="I accept these terms", elem_id=f"{elem_id}-accept")
    return Terms(choice, column, words, box, model_of)


def chosen_model(choice: Any) -> str:
    """The model that a choice in a dropdown means; the fast mode of that name is one."""
    return FEW_STEPS.model if choice == "lora" else choice or ""


def terms_html(model: str | None) -> str:
    """What has to be accepted before a model's first use; empty if nothing has to be."""
    spec = table.find(model) if model else None
    if spec is None or not spec.terms:
        return ""
    size = f"About {table.size(spec.download_bytes)} are fetched once, and nothing before you have ticked the box."
    if spec.by_hand:
        size = "It is on this server already, and is not used before you have ticked the box."
    return f'<p class="rc-caption">{escape(spec.terms)} ({escape(spec.licence)}.) {size}</p>'


def terms_classes(model: str | None) -> list[str]:
    return ["rc-terms"] if terms_html(model) else ["rc-terms", "rc-away"]


def show_terms(model: str, names: tuple[str, ...]) -> tuple[str, gr.Checkbox, gr.Column]:
    """The terms of the chosen model, if it has any. names: of models whose terms are accepted."""
    return terms_html(model), gr.Checkbox(value=model in names), gr.Column(elem_classes=terms_classes(model))


def accept(ticked: bool, model: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of all models whose terms this visitor has accepted."""
    return tuple(name for name in names if name != model) + ((model,) if ticked else ())
