"""A runnable reproduction of "Improving Image Generation with Better Captions" (DALL-E 3).

One module per step of the method, in its words; the notebooks tell the story and call them.
Importing the package is cheap: heavy libraries are imported by the modules that need them.
"""

__version__ = "0.1.0"


class UserError(Exception):
    """A mistake the user can cure: the message is one sentence with the cause and the cure."""
