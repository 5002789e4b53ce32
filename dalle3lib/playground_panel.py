"""The playground's panel: a prompt, its options and a button, for a notebook with a live kernel."""

import html
import io
import itertools

import ipywidgets as widgets
import numpy as np
from PIL import Image

from dalle3lib import UserError, pairs
from dalle3lib.config import Parameters
from dalle3lib.playground import DECODERS, Models, Result, generate, report, upsampled
from dalle3lib.randomness import rng
from dalle3lib.world import descriptive_caption, scene
from dalle3lib.world.wording import hint

EXAMPLE = "a large striped red circle above a small blue star, on snow."


def panel(models: Models) -> widgets.VBox:
    """A widget to play with: prompt, upsampler, arm, guidance …; "Draw" shows the pictures.

    A mistake is shown in the panel as one sentence. The networks are loaded at the first "Draw".
    """
    wide = {"style": {"description_width": "initial"}}
    labels = models.names
    prompt = widgets.Textarea(
        models.cfg.get("prompt", EXAMPLE), description="prompt", rows=2, layout={"width": "40em"}
    )
    arm = widgets.Dropdown(
        options=[("all, side by side", tuple(labels)), *((labels[n], (n,)) for n in labels)],
        description="arm",
    )
    writer = widgets.Dropdown(
        options=[("nobody", ""), *((name, name) for name in models.upsamplers)],
        description="made longer by",
        **wide,
    )
    own = widgets.Checkbox(True, description="the guidance chosen for the arm", **wide)
    guidance = widgets.FloatSlider(
        3, min=1, max=10, step=0.5, description="guidance", disabled=True
    )
    decoder = widgets.Dropdown(options=DECODERS[: 1 + models.world], description="decoder")
    steps = widgets.IntSlider(20, min=1, max=50, description="DDIM steps", **wide)
    seed = widgets.BoundedIntText(0, min=0, max=999_999, description="seed")
    draw = widgets.Button(description="Draw", button_style="primary")
    another = widgets.Button(description="Another prompt")
    message, pictures = widgets.HTML(), widgets.Box(layout={"flex_flow": "row wrap"})
    own.observe(lambda change: setattr(guidance, "disabled", change["new"]), "value")
    numbers = itertools.count()

    def suggest(_) -> None:
        prompt.value = suggestion(models.cfg, next(numbers))

    def show(_) -> None:
        options = {"seed": seed.value, "steps": steps.value, "decoder": decoder.value}
        options["guidance"] = None if own.value else guidance.value
        draw.disabled, message.value, pictures.children = True, "Drawing …", ()
        try:
            if writer.value:
                options["written"] = upsampled(models, prompt.value, writer.value, seed.value)
            for name in arm.value:
                result = generate(models, prompt.value, name, **options)
                title = f"{labels[name]}, guidance {result.guidance:g}"
                pictures.children += (_card(title, result),)
            told = [f"Drawn: {options['written']}"] if writer.value else []
            told += [hint(prompt.value)] if models.world else []
            message.value = "<br>".join(map(html.escape, told))
        except UserError as error:
            message.value = f"<b>{html.escape(str(error))}</b>"
        finally:
            draw.disabled = False

    another.on_click(suggest)
    draw.on_click(show)
    rows = [[arm, seed, steps], [own, guidance], [writer, decoder], [draw, another]]
    return widgets.VBox([prompt, *map(widgets.HBox, rows), message, pictures])


def suggestion(cfg: Parameters, index: int) -> str:
    """A prompt to try: the description of a held-out scene, or a held-out image's caption."""
    if cfg.get("data", "world") == "world":
        return descriptive_caption(scene("dev", index), rng(0, "playground/prompt", index))
    records = pairs.held_out(cfg, index + 1)
    return records[index % len(records)].alt


def _card(title: str, result: Result) -> widgets.VBox:
    """One enlarged picture with its title above and its report below."""
    lines = "<br>".join(map(html.escape, report(result)))
    picture = widgets.Image(value=png(result.image), format="png", width=256, height=256)
    below = widgets.HTML(f'<div style="line-height: 1.4">{lines}</div>')
    heading = widgets.HTML(f"<b>{html.escape(title)}</b>")
    return widgets.VBox([heading, picture, below], layout={"width": "266px"})


def png(image: np.ndarray, scale: int = 4) -> bytes:
    """A picture uint8 [H, W, 3] as a PNG file, each pixel a square of ``scale`` pixels."""
    size = (image.shape[1] * scale, image.shape[0] * scale)
    file = io.BytesIO()
    Image.fromarray(image).resize(size, Image.Resampling.NEAREST).save(file, "png")
    return file.getvalue()
