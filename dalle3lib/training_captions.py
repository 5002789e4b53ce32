"""The captions that generators train on: which captioners write them, and where they lie.

The parameters ``base``, ``ssc`` and ``dsc`` of a notebook name a captioner each: "shipped", a
directory made by ``captioner.save``, open_clip's "name:tag", or "fine-tuned": what notebook 02a
made with the same preset and data. ``captions_from`` says where the captions of a whole data set
lie ("written": committed in this repository, or written when they are needed; "truth": people's).
"""

from collections.abc import Sequence
from pathlib import Path

from dalle3lib import UserError, files, pairs, paths, pretrained, recaption, runs
from dalle3lib.config import Parameters
from dalle3lib.images import Record
from dalle3lib.recaption import KINDS

FINE_TUNED = "fine-tuned"
LONGEST_SHORT = 76  # tokens: a short caption needs no more, whatever the captioner's context


def place(cfg: Parameters, kind: str) -> str:
    """Where a notebook's captioner of a kind ("base", "ssc" or "dsc") lies: a directory or a name.

    Raises UserError, naming the command that makes it, for a fine-tuned one that is not there.
    """
    where = cfg.values[kind]
    if where == "shipped":
        return str(paths.foundation(f"coca-{kind}"))
    if where == FINE_TUNED:
        return str(runs.find(cfg, "02a_fine_tune", kind) / "captioner")
    return str(paths.folder(where)) if paths.folder(where).is_dir() else where


def load(cfg: Parameters, kind: str) -> tuple:
    """The captioner of a kind on the device, its tokenizer, its longest caption in tokens."""
    shipped = cfg.values[kind] == "shipped"
    where = "shipped" if shipped else place(cfg, kind)
    model, tokenizer, length = recaption.find_captioner(kind, where)
    return model.to(pretrained.device(cfg)), tokenizer, length


def uses(cfg: Parameters) -> list[Path]:
    """The runs of notebook 02a that a notebook's captioners come from, for ``runs.open_run``."""
    kinds = [kind for kind in KINDS if cfg.values[kind] == FINE_TUNED]
    return [runs.find(cfg, "02a_fine_tune", kind) for kind in kinds]


def of(cfg: Parameters, records: Sequence[Record]) -> dict[str, list[str | None]]:
    """The caption of each record that generators train on, by kind; None: not written yet."""
    if cfg.captions_from == pairs.TRUTH:
        return pairs.of_records(records, pairs.TRUTH)
    if cfg.captions_from == pairs.WRITTEN:
        names = [recaption.picture_id(record.image) for record in records]
        return {kind: list(map(known.get, names)) for kind, known in recaption.committed().items()}
    rows = pairs.open_captions(cfg.captions_from).all()
    return {kind: [rows.get(r.key, {}).get(kind) for r in records] for kind in KINDS}


def write(cfg: Parameters, captioners: Parameters) -> dict[str, str]:
    """Write the captions that a preset's arms and prompts need, unless they are there.

    ``cfg`` are the parameters of notebook 04a, ``captioners`` those of 03. Returns the digest of
    the manifest of each folder of captions. An interrupted call goes on; folders that ``recaption``
    finished, by whatever captioner, are taken as they are. Raises UserError as ``caption_dataset``.
    """
    made = {}
    for source, folder, kinds in wanted(cfg):
        where = paths.folder(folder)
        if not (where / "manifest.json").is_file():
            print(f"Writing {' and '.join(kinds)} captions of {source} into {where}", flush=True)
            models = {kind: Path(place(captioners, kind)) for kind in kinds}
            device = pretrained.device(cfg)
            options = {"captioners": models, "lengths": lengths(captioners, kinds)}
            recaption.caption_dataset(source, where, kinds, device=device, **options)
        pairs.open_captions(folder, kinds)
        made[folder] = files.sha256(where / "manifest.json")
    return made


def wanted(cfg: Parameters) -> list[tuple[str, str, tuple[str, ...]]]:
    """The folders of captions that a preset names: (source, folder, kinds) of each."""
    found = []
    if cfg.data != "world" and cfg.captions_from not in (pairs.WRITTEN, pairs.TRUTH):
        found.append((cfg.data, cfg.captions_from, KINDS))
    if cfg.prompt_captions != pairs.WRITTEN and cfg.prompts_from not in pairs.HELD_OUT:
        found.append((str(paths.folder(cfg.prompts_from)), cfg.prompt_captions, ("dsc",)))
    return found


def lengths(cfg: Parameters, kinds: Sequence[str]) -> dict[str, int]:
    """The longest caption of each kind in tokens; UserError for a captioner without a directory."""
    for kind in kinds:
        if not Path(place(cfg, kind)).is_dir():
            raise UserError(
                f"The captioner {kind} must be a directory made by captioner.save (or by notebook "
                f"02a) to caption a whole data set, not {cfg.values[kind]!r}."
            )
    longest = {kind: load(cfg, kind)[2] for kind in kinds}
    return longest | ({"ssc": min(longest["ssc"], LONGEST_SHORT)} if "ssc" in kinds else {})
