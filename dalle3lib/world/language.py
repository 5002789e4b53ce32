"""What people and the web say about a scene: short, descriptive and alt-text captions.

The short caption names the main subject only, the descriptive one states every fact (the paper's
two fine-tuning sets, §2.1); both are lower case and end with a period as the released ones do.
The reworded caption states the same facts in sentences that no training caption is built like.
The alt-text is what a web page might carry: an incomplete, sometimes wrong or unrelated line.
"""

import numpy as np

from dalle3lib import UserError
from dalle3lib.world.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing

RELATION = {("left", "right"): "to the left of", ("top", "bottom"): "above"}
INVERSE = {"to the left of": "to the right of", "above": "below"}

# How the attributes of an object stand together, and the sentences around objects. The held-out
# ones are built from the same words, but never occur in a training caption.
PHRASES = (
    "{size} {texture} {colour} {noun}",
    "{size} {texture} {colour} {noun}",  # twice: the commonest order
    "{size} {colour} {texture} {noun}",
    "{size} {colour} {noun} with a {texture} texture",
    "{size} {texture} {noun} in {colour}",
    "{texture} {colour} {noun} which {be} {size}",
)
HELD_OUT_PHRASES = (
    "{noun} which {be} {size}, {colour} and {texture}",
    "{texture} {noun} which {be} {colour} and {size}",
)
FRAMES = (
    "{what}. the background is {where}.",
    "{what}, in front of {where}.",
    "{what} with {where} behind.",
    "{what}. behind, there is {where}.",
    "the picture shows {what} on {where}.",
    "this {be} {what}. the background shows {where}.",
    "we see {what} in front of {where}.",
    "against {where}, {what}.",
    "there is {where} in the background, and {what}.",
    "there {be} {what} against {where}.",
)
HELD_OUT_FRAMES = (
    "{where} is behind {what}.",
    "in front of {where} there {be} {what}.",
    "the background is {where}, and against the background we see {what}.",
    "with {where} behind, we see {what}.",
)
NOTES = (
    'the word "{}" is printed below.',
    'below, it says "{}".',
    'the text at the bottom is "{}".',
    '"{}" is printed at the bottom.',
)
SHORT_FRAMES = (
    "{}.", "{}.", "{}.", "{}.", "there {be} {}.", "we see {}.", "this {be} {}.",
    "a picture of {}.", "an image of {}.", "the picture shows {}.",
)  # fmt: skip

# What web pages carry besides: "{}" stands for a number. No line has a word that names a fact.
ADVERTS = (
    "free shipping on orders over ${}", "buy 2 get 1 free", "best price of {}", "shop now and save",
    "order online today", "20% off this week", "new arrivals", "sold out", "in stock", "sale",
    "download in HD 1920x1080", "royalty free stock photo {}", "print on canvas", "buy it now",
    "gift for him and her", "fast delivery and free returns", "vector clip art", "view all photos",
    "posted by admin", "free wallpaper for your desktop and phone", "item no. {}", "add to cart",
    "hand made in Portugal", "photo gallery of our online shop", "ideas for your home and garden",
    "order by phone or online and get a free gift card", "find the perfect picture for your office",
)  # fmt: skip
UNRELATED = (
    "Home page", "Click to enlarge", "Our team at the annual meeting of {}", "image not available",
    "Back to the list of articles", "Photo by the author", "Figure {}", "logo", "thumbnail",
    "How to choose a sofa for your living room", "Ten recipes for a quick dinner with the family",
    "Customer reviews ({})", "The view from our hotel in Lisbon", "Page {} of the catalogue",
    "Cheap flights from London", "Vintage leather armchair", "Wedding invitation no. {}", "banner",
    "A guide to the best restaurants in town", "Used car for sale in Berlin, only {} miles",
    "Minutes of the city council", "Two bedroom apartment to rent near the station",
    "Running shoes for women", "What we learned from a year of working at home",
)  # fmt: skip


def pick(options, random: np.random.Generator):
    """One of a sequence of options, all equally likely."""
    return options[int(random.integers(len(options)))]


def article(phrase: str) -> str:
    """The phrase with "a" or "an" in front."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _noun(thing: Thing, plural: bool = False) -> str:
    plural_form = {"cross": "crosses"}.get(thing.shape, thing.shape + "s")
    return plural_form if plural else thing.shape


def full_phrase(thing: Thing, plural: bool = False, form: str = PHRASES[0]) -> str:
    """All attributes of an object without article, by default as "large striped red circle".

    ``form`` says what stands where, as in ``PHRASES``; it may leave attributes out.
    """
    attributes = {"size": thing.size, "texture": thing.texture, "colour": thing.colour}
    return form.format(noun=_noun(thing, plural), be="are" if plural else "is", **attributes)


def short_caption(spec: Scene, random: np.random.Generator) -> str:
    """The main subject only, as a human writes it: lower case, one clause, final period."""
    main, twins = spec.main(), spec.twins()
    noun = _noun(main, plural=twins)
    phrase = f"{noun} in {main.colour}" if random.random() < 0.15 else f"{main.colour} {noun}"
    if random.random() < 0.2:
        phrase = f"{main.texture} {phrase}"
    subject = f"two {phrase}" if twins else article(phrase)
    caption = pick(SHORT_FRAMES, random).format(subject, be="are" if twins else "is")
    return caption.replace("this are", "these are")


def _arrangement(spec: Scene, form: str, random: np.random.Generator) -> str:
    """Every object and where it is, as one noun phrase without a final period."""
    things = [article(full_phrase(o, form=form)) for o in spec.objects]
    placed = [
        f"{thing} {'in' if o.place == 'centre' else 'at'} the {o.place}"
        for thing, o in zip(things, spec.objects, strict=True)
    ]
    if len(things) != 2:
        return ", ".join(placed)
    relation = RELATION[spec.objects[0].place, spec.objects[1].place]
    if spec.twins():
        direction = "side by side" if relation == "to the left of" else "one above the other"
        direction = pick((direction, f"one {relation} the other"), random)
        return f"two {full_phrase(spec.objects[0], plural=True, form=form)} {direction}"
    return pick(
        (
            f"{things[0]} {relation} {things[1]}",
            f"{things[1]} {INVERSE[relation]} {things[0]}",
            f"{placed[0]} and {placed[1]}",
        ),
        random,
    )


def descriptive_caption(
    spec: Scene,
    random: np.random.Generator,
    frames: tuple[str, ...] = FRAMES,
    phrases: tuple[str, ...] = PHRASES,
) -> str:
    """Every fact of the scene: objects with all attributes, places, background, printed word.

    ``frames`` and ``phrases`` are the sentences and the orders of attributes to choose from.
    """
    what = _arrangement(spec, pick(phrases, random), random)
    be = "are" if spec.twins() else "is"
    caption = pick(frames, random).format(what=what, where=spec.background, be=be)
    caption = caption.replace("this are", "these are")
    return caption + (" " + pick(NOTES, random).format(spec.word) if spec.word else "")


def reworded_caption(spec: Scene, random: np.random.Generator) -> str:
    """A descriptive caption in held-out sentences and orders: known words, unknown structure."""
    return descriptive_caption(spec, random, HELD_OUT_FRAMES, HELD_OUT_PHRASES)


def _alt_facts(spec: Scene, noise: float, random: np.random.Generator) -> str:
    """What an alt-text that is about the picture says: some facts, a few of them wrong."""
    wrong = 0.2 * noise

    def stated(value: str, values: tuple[str, ...], chance: float) -> str:
        """The value, now and then a wrong one, or nothing at all."""
        keep, err = random.random() < chance, random.random() < wrong
        return (pick(values, random) if err else value) + " " if keep else ""

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
        text += pick((" on ", ", ", " with "), random) + stated(spec.background, BACKGROUNDS, 1)
    if spec.word and random.random() < 0.5:
        text += f' "{spec.word}"'
    return " ".join(text.split())


def _clutter(options: tuple[str, ...], random: np.random.Generator) -> str:
    """One line of the list, its number drawn."""
    return pick(options, random).format(random.integers(2, 2024))


def alt_text(
    spec: Scene,
    noise: float,
    random: np.random.Generator,
    style: np.random.Generator | None = None,
) -> str:
    """A web page's text for the picture, at noise level ``noise`` in [0, 0.75].

    With the level rises the share of texts that have nothing to do with the picture (0.6 noise),
    of facts left out or stated wrongly, of file names, and the number of adverts and page titles
    around (3 noise on average). Every attribute, places, background and printed words included,
    is stated at a non-zero rate at every level. At noise 0.5, length, case, articles, digits and
    final periods are roughly what is published of LAION's alt-texts (``captions.PUBLISHED``).
    The facts are drawn from ``random`` first, then everything else from ``style`` (by default
    ``random`` too): another style says the same facts otherwise. Raises UserError for a noise
    outside [0, 0.75].
    """
    if not 0 <= noise <= 0.75:
        raise UserError(f"The alt-text noise {noise} is outside 0 to 0.75: choose a value inside.")
    about = random.random() >= 0.6 * noise
    text = _alt_facts(spec, noise, random) if about else _clutter(UNRELATED, random)
    style = style or random
    if style.random() < 0.25 * noise:
        words = text.replace(",", "").split() if about else []
        return "_".join(["IMG", str(style.integers(1000, 9999)), *words]) + ".jpg"
    if about and style.random() < 0.05:
        text = article(text)
    for _ in range(style.poisson(3 * noise)):
        text += pick((" | ", " - ", ", "), style) + _clutter(ADVERTS + UNRELATED, style)
    case = style.random()
    text = text.title() if case < 0.28 else text[0].upper() + text[1:] if case < 0.78 else text
    return text + ("." if style.random() < 0.07 else "")
