"""What people and the web say about a scene: short, descriptive and alt-text captions.

The short caption names the main subject only, the descriptive one states every fact (the paper's
two fine-tuning sets, §2.1); both are lower case and end with a period as the released ones do.
The alt-text is what a web page might carry: an incomplete, sometimes wrong or unrelated line.
"""

import numpy as np

from dalle3lib import UserError
from dalle3lib.world.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing

RELATION = {("left", "right"): "to the left of", ("top", "bottom"): "above"}
INVERSE = {"to the left of": "to the right of", "above": "below"}
ADVERTS = (
    "free shipping on orders over $49", "buy 2 get 1 free", "best price 2019", "shop now and save",
    "order online today", "20% off this week", "new arrivals", "sold out", "in stock: 14",
    "download in HD 1920x1080", "royalty free stock photo 482", "print on canvas 30 x 40 cm",
)  # fmt: skip
UNRELATED = (
    "Home page", "Click to enlarge", "Our team at the 2018 annual meeting", "image not available",
    "Back to the list of articles", "Photo by the author, May 2012", "Figure 3", "logo",
    "How to choose a sofa for your living room", "Ten recipes for a quick dinner", "thumbnail 04",
    "Customer reviews (128)", "The view from our hotel in Lisbon", "Page 7 of 12", "banner",
    "Cheap flights from London", "Vintage leather armchair, 1960s", "Wedding invitation no. 52",
)  # fmt: skip


def _pick(options, random: np.random.Generator):
    return options[int(random.integers(len(options)))]


def article(phrase: str) -> str:
    """The phrase with "a" or "an" in front."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _noun(thing: Thing, plural: bool = False) -> str:
    plural_form = {"cross": "crosses"}.get(thing.shape, thing.shape + "s")
    return plural_form if plural else thing.shape


def full_phrase(thing: Thing, plural: bool = False) -> str:
    """All attributes of an object without article: "large striped red circle"."""
    return f"{thing.size} {thing.texture} {thing.colour} {_noun(thing, plural)}"


def short_caption(spec: Scene, random: np.random.Generator) -> str:
    """The main subject only, as a human writes it: lower case, one clause, final period."""
    main, twins = spec.main(), spec.twins()
    phrase = f"{main.colour} {_noun(main, plural=twins)}"
    if random.random() < 0.2:
        phrase = f"{main.texture} {phrase}"
    subject = f"two {phrase}" if twins else article(phrase)
    frames = ("{}.", "{}.", "{}.", "there is {}.", "a picture of {}.")
    caption = _pick(frames, random).format(subject)
    return caption.replace("there is two", "there are two")


def _arrangement(spec: Scene, random: np.random.Generator) -> str:
    """Every object and where it is, as one clause without a final period."""
    things = [article(full_phrase(o)) for o in spec.objects]
    places = [f"{'in' if o.place == 'centre' else 'at'} the {o.place}" for o in spec.objects]
    if len(things) == 1:
        return _pick((f"{things[0]} {places[0]}", f"{places[0]} is {things[0]}"), random)
    if len(things) > 2:
        return ", ".join(f"{t} {p}" for t, p in zip(things, places, strict=True))
    relation = RELATION[spec.objects[0].place, spec.objects[1].place]
    if spec.twins():
        direction = "side by side" if relation == "to the left of" else "one above the other"
        return f"two {full_phrase(spec.objects[0], plural=True)} {direction}"
    return _pick(
        (
            f"{things[0]} {relation} {things[1]}",
            f"{things[1]} {INVERSE[relation]} {things[0]}",
            f"{things[0]} {places[0]} and {things[1]} {places[1]}",
        ),
        random,
    )


def descriptive_caption(spec: Scene, random: np.random.Generator) -> str:
    """Every fact of the scene: objects with all attributes, places, background, printed word."""
    frames = (
        "{what}. the background is {where}.",
        "{what}, in front of {where}.",
        "the picture shows {what}. behind, there is {where}.",
        "against {where}, {what}.",
        "there is {where} in the background, and {what}.",
    )
    caption = _pick(frames, random).format(what=_arrangement(spec, random), where=spec.background)
    if spec.word:
        notes = ('the word "{}" is printed at the bottom.', 'below, it says "{}".')
        caption += " " + _pick(notes, random).format(spec.word)
    return caption


def _alt_facts(spec: Scene, noise: float, random: np.random.Generator) -> str:
    """What an alt-text that is about the picture says: some facts, a few of them wrong."""
    wrong = 0.2 * noise

    def stated(value: str, values: tuple[str, ...], chance: float) -> str:
        """The value, now and then a wrong one, or nothing at all."""
        keep, err = random.random() < chance, random.random() < wrong
        return (_pick(values, random) if err else value) + " " if keep else ""

    def phrase(thing: Thing) -> str:
        return (
            stated(thing.size, SIZES, 0.4 * (1 - noise))
            + stated(thing.texture, TEXTURES, 0.6 * (1 - noise))
            + stated(thing.colour, COLOURS, 1 - 0.8 * noise)
            + (stated(thing.shape, SHAPES, 1) or thing.shape)
        ).strip()

    text = phrase(spec.main())
    others = [o for o in spec.objects if o is not spec.main()]
    if others and random.random() < 0.6 * (1 - noise):
        text += " and " + phrase(others[0])
    elif random.random() < 0.3 * (1 - noise):
        text += f" {spec.main().place}"
    if random.random() < 0.6 * (1 - noise):
        text += _pick((" on ", ", ", " with "), random) + stated(spec.background, BACKGROUNDS, 1)
    if spec.word and random.random() < 0.5:
        text += f' "{spec.word}"'
    return text.strip()


def alt_text(spec: Scene, noise: float, random: np.random.Generator) -> str:
    """A web page's text for the picture, at noise level ``noise`` in [0, 0.75].

    With the level rises the share of texts that have nothing to do with the picture (0.6 noise),
    of facts left out or stated wrongly, of adverts and of file names. Every attribute, background
    and printed words included, is stated at a non-zero rate at every level. Case, articles and
    final periods are roughly, at low noise, what is published of LAION's alt-texts (82 % begin
    upper case, 4 % with an article, 6 % end with a period). Raises UserError outside [0, 0.75].
    """
    if not 0 <= noise <= 0.75:
        raise UserError(f"The alt-text noise {noise} is outside 0 to 0.75: choose a value inside.")
    if random.random() < 0.6 * noise:
        return _pick(UNRELATED + ADVERTS, random)
    text = _alt_facts(spec, noise, random)
    if random.random() < 0.25 * noise:
        return f"IMG_{random.integers(1000, 9999)}_{'_'.join(text.replace(',', '').split())}.jpg"
    if random.random() < 0.05:
        text = article(text)
    if random.random() < 0.8 * noise:
        text += _pick((" | ", " - ", ", "), random) + _pick(ADVERTS, random)
    style = random.random()
    text = text.title() if style < 0.3 else text.capitalize() if style < 0.85 else text
    return text + ("." if random.random() < 0.07 else "")
