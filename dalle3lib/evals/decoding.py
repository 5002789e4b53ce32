"""Ways of decoding, side by side: what each writes for a picture, and how probable it is."""

import numpy as np
import pandas as pd
import torch

from dalle3lib import captioner

WAYS = {
    "greedy": {},
    "beam search, 4 beams": {"strategy": "beam", "num_beams": 4},
    "sampled": {"strategy": "sample"},
    "sampled, top-p 0.9": {"strategy": "sample", "top_p": 0.9},
}


def compare(
    model, tokenizer, images: np.ndarray, *, seed: int, max_len: int
) -> dict[str, captioner.Captions]:
    """Captions of images uint8 [N, H, W, 3] by each of ``WAYS``; ``seed`` is that of the sampling.

    ``max_len`` is in tokens, see ``captioner.generate``.
    """
    found = {}
    for name, way in WAYS.items():
        if way.get("strategy") == "sample":
            way = way | {"generator": torch.Generator().manual_seed(seed)}
        found[name] = captioner.write(
            model, tokenizer, images, max_len=max_len, progress=False, **way
        )
    return found


def table(found: dict[str, captioner.Captions], shown: int) -> pd.DataFrame:
    """What ``compare`` returned, a row per way: the caption of image ``shown``, means over all.

    Log-probabilities are of whole captions, in nats; a caption is cut that did not end in time.
    """
    rows = {
        name: {
            "caption": written.texts[shown],
            "log-probability": float(written.log_probability[shown]),
            "mean log-probability": float(written.log_probability.mean()),
            "mean words": float(np.mean([len(text.split()) for text in written.texts])),
            "cut (%)": 100 * float(written.truncated.mean()),
        }
        for name, written in found.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")
