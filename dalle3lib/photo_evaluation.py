"""The CLIP score of Table 1 on photographs: arms of a GPU's presets, COCO's captions (§4.1.1).

The paper samples 4,096 captions of COCO 2014's validation images and scores one picture of each
with CLIP ViT-B/32. Here the draw has a recorded seed, and the arms are live runs of notebook 04a.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from diffusers import UNet2DConditionModel

from dalle3lib import UserError, arm, coco, paths, pretrained, runs, stats
from dalle3lib.config import Parameters
from dalle3lib.evals import clip_score
from dalle3lib.randomness import rng
from dalle3lib.sample import sample

VARIANTS = ("paper", "hessel")


def coco_captions(folder: str | Path, count: int = 4096, seed: int = 0) -> list[str]:
    """``count`` captions of a COCO folder, drawn with a seed without repetition.

    All captions that are not blank take part, in the order of file names and annotations. Raises
    UserError if there are fewer, or no captions file.
    """
    known = coco.references(paths.folder(str(folder)))
    texts = [text.strip() for name in sorted(known) for text in known[name] if text.strip()]
    if count > len(texts):
        raise UserError(f"{folder} has {len(texts)} captions, fewer than {count}: ask for fewer.")
    picked = rng(seed, "COCO captions").choice(len(texts), count, replace=False)
    return [texts[i] for i in picked]


def score_arm(cfg: Parameters, name: str, captions: Sequence[str]) -> pd.DataFrame:
    """A picture of each caption by a live arm (kind-ratio-seed), and its CLIP scores: a row each.

    ``cfg`` are the parameters of notebook 04a, which name the models. Columns are those of
    ``clip_score.score_images``, and ``hessel`` with the other variant. Raises UserError, naming the
    command, if the arm was not trained.
    """
    run = runs.find(cfg, "04a_train_arm", *name.rsplit("-", 2))
    unet = UNet2DConditionModel.from_pretrained(run / "unet").float().eval().requires_grad_(False)
    on = arm.studio([], cfg, {"captions": list(captions)})
    options = {"seed": cfg.seed, "steps": cfg.sampling_steps, "dtype": on.dtype}
    options["guidance"] = runs.results(run)["guidance"]
    unet = unet.to(pretrained.device(cfg))
    pictures = sample(unet, on.autoencoder, on.states["captions"], **options)
    seen = clip_score.resized(on.scorer[0], pictures)
    table = clip_score.score_images(*on.scorer, seen, captions, cfg.seed)
    hessel = clip_score.clip_scores(*on.scorer, seen, captions, "hessel")
    cut = clip_score.truncated(*on.scorer, captions)
    return table.assign(hessel=hessel, cut=cut, arm=name)


def evaluate(
    cfg: Parameters, names: Sequence[str], count: int, seed: int, folder: Path
) -> pd.DataFrame:
    """Each arm's mean CLIP score with its 95 % interval over captions; rows by arm.

    Columns mean, low, high (100 × cosine), hessel (their mean), and cut (share of captions of which
    the scorer saw the beginning only). Rows of an arm are kept in ``folder``, so that an
    interrupted call goes on with the next. Raises UserError as ``coco_captions`` and ``score_arm``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    captions, rows = coco_captions(cfg.prompts_from, count, seed), {}
    for name in names:
        place = folder / f"{name}.parquet"
        if not place.is_file():
            score_arm(cfg, name, captions).to_parquet(place)
        found = pd.read_parquet(place)
        low, high = stats.mean_interval(found.score, rng(0, f"photographs/{name}"))
        means = {"mean": found.score.mean(), "low": low, "high": high}
        rows[name] = means | {"hessel": found.hessel.mean(), "cut": found.cut.mean()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")
