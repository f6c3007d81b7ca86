"""The page's layout, and which action belongs to which field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from .._choices import BIASES, READOUTS, WEIGHTINGS
from ..recipe import Recipe
from . import _api as api
from ._choice import methods_offered
from ._handlers import Handlers
from ._loading import HEADING, TITLE
from ._photograph import MAX_BYTES
from ._screen import COMPARE, macros
from ._session import SessionStore

HERE = Path(__file__).parent
AT_ONCE = 4
"""Quick actions at a time; long ones, such as insertion, have one place of their own."""
WAITING = 64
"""Actions that may wait; those that come then are told to try again."""

PARTS = (
    "The score is the network's output for the class, before any softmax or sigmoid, less most of what it says for "
    "other classes. The remainder comes from clipping, gates and smooth activations, which cannot be split."
)
RADIOS = (
    ("readout", READOUTS, "Read-out", "The smooth function of the score; exp lets strong evidence saturate."),
    ("bias", BIASES, "Bias", "How the biases of the network join the map."),
    ("weighting", WEIGHTINGS, "Weighting", "What makes a layer count: its gradient, its activation, or both."),
)
"""Ingredients with a few choices: field of `Recipe`, choices, label and what it does."""


def theme() -> Any:
    """Quiet colours and the system's own fonts: nothing is fetched."""
    return gr.themes.Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        radius_size="lg",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def css() -> str:
    """The page's own style."""
    return (HERE / "page.css").read_text("utf-8")


def page(sessions: SessionStore, uploads: Path, example: Path | None = None) -> Any:
    """The page as Gradio's Blocks, not yet served; clients of the API upload to `uploads`."""
    default, methods = Recipe(), methods_offered()
    names = list(sessions.offer)
    act = Handlers(sessions, example)
    empty = str(macros().empty(example is not None))
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(60, 600), fill_width=True) as blocks:
        key = gr.State(None, delete_callback=sessions.close, time_to_live=None)
        target, layer = gr.State(None), gr.State(None)
        gr.HTML(HEADING, elem_id="icam-heading")
        with gr.Row(elem_id="icam-columns"):
            with gr.Column(scale=7, min_width=320):
                stage = gr.HTML(empty, js_on_load=_script("page"), elem_id="icam-stage", min_height=320)
                with gr.Column(visible=False) as below:
                    opacity = gr.Slider(0, 1, 1, step=0.05, label="Opacity of the map", elem_id="icam-opacity")
                    profile = gr.HTML(js_on_load=_script("profile"), elem_id="icam-profile")
            with gr.Column(scale=5, min_width=320, visible=False) as side:
                network = gr.Dropdown(names, value=names[0], label="Network", visible=len(names) > 1)
                top = gr.Radio([], label="Class that is explained", elem_id="icam-top")
                search = gr.Dropdown(
                    [], value=None, label="Or search for a class", filterable=True, elem_id="icam-search"
                )
                with gr.Group():
                    compare = gr.Radio(COMPARE, value=COMPARE[0], label="Show", elem_id="icam-compare")
                    other_target = gr.Dropdown([], label="Second class", visible=False)
                    other_method = gr.Dropdown(methods, value="gradcam", label="Second method", visible=False)
                with gr.Accordion("Ingredients of the map", open=True, elem_id="icam-ingredients"):
                    method = gr.Dropdown(methods, value="integrative", label="Method")
                    readout, bias, weighting = (
                        gr.Radio(list(choices), value=getattr(default, name), label=label, info=info)
                        for name, choices, label, info in RADIOS
                    )
                    negative_share = gr.Slider(
                        0,
                        1,
                        default.negative_share,
                        step=0.05,
                        label="Negative share",
                        info="How much of the evidence against the class is subtracted.",
                    )
                    reset = gr.Button("Back to what the method has", size="sm", elem_id="icam-reset")
        with gr.Row(visible=False, elem_id="icam-more") as more:
            with gr.Column(min_width=320):
                gr.HTML("<h2>Numbers</h2>")
                numbers = gr.HTML()
                gr.HTML(f'<p class="icam-hint">{PARTS}</p>')
                measure = gr.Button("Measure insertion and deletion", elem_id="icam-measure")
                curves = gr.HTML(elem_id="icam-curves")
            with gr.Column(min_width=320):
                gr.HTML("<h2>Take it with you</h2>")
                with gr.Row():
                    picture = gr.Button("Picture (PNG)", elem_id="icam-picture")
                    archive = gr.Button("Explanation (zip)", elem_id="icam-archive")
                code = gr.Code(
                    language="python",
                    label="The same in Python",
                    interactive=False,
                    wrap_lines=True,
                    elem_id="icam-code",
                )

        style = gr.HTML(elem_classes="icam-unseen")
        download = gr.HTML(
            html_template="<span hidden></span>", js_on_load=_script("download"), elem_classes="icam-unseen"
        )

        ingredients = [readout, bias, weighting, negative_share]
        selected = [key, network, target, method, *ingredients, compare, other_target, other_method, layer]
        parts = [stage, profile, numbers, code, curves]
        first = [target, layer, top, search, other_target, *parts]

        quick: dict[str, Any] = {
            "api_visibility": "private",
            "concurrency_id": "quick",
            "concurrency_limit": AT_ONCE,
            "show_progress": "hidden",
        }
        slow = {**quick, "concurrency_id": "slow", "concurrency_limit": 1, "show_progress": "minimal"}
        latest = {**quick, "trigger_mode": "always_last"}

        def photographed(event: gr.EventData, *values: Any) -> list[Any]:
            return act.photograph(*values, event=event._data)

        def layered(event: gr.EventData, *values: Any) -> list[Any]:
            return act.layer(*values, event=event._data)

        opened = [key, style, below, side, more, *first]
        stage.photograph(photographed, selected, opened, **quick)
        stage.example(act.open_example, selected, opened, **quick)
        network.input(act.network, selected, first, **latest)
        opacity.input(
            None, opacity, None, js="(value) => { document.documentElement.style.setProperty('--icam-opacity', value) }"
        )
        top.input(act.top, [key, top, *selected[1:]], [target, search, *parts], **latest)
        search.input(act.searched, [key, search, *selected[1:]], [target, top, *parts], **latest)
        compare.input(act.compared, selected, [other_target, other_method, *parts], **latest)
        for field in (other_target, other_method, *ingredients):
            field.input(act.changed, selected, parts, **latest)
        for event in (method.input, reset.click):
            event(act.method, selected, [*ingredients, *parts], **latest)
        profile.layer(layered, selected, [layer, stage, code], **latest)
        measure.click(act.measured, selected, curves, **slow)
        picture.click(act.picture, [opacity, *selected], download, **slow)
        archive.click(act.archive, selected, download, **slow)
        api.add(sessions, uploads)
    blocks.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    return blocks


def _script(name: str) -> str:
    return (HERE / f"{name}.js").read_text("utf-8").replace("LIMIT", str(MAX_BYTES))
