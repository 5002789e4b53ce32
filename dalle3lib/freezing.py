"""Freezing claims: what a claim says is fixed by its hash before anybody knows the result."""

import re
from collections.abc import Sequence
from pathlib import Path

from dalle3lib import UserError, claims, files, paths
from dalle3lib.config import nearest


def freeze(names: Sequence[str], path: str | Path | None = None) -> list[str]:
    """Write the hash of every claim named, by its family or its own id; the ids of those claims.

    Claims that are frozen already stay as they are. Nothing else in the file changes. Raises
    UserError for an unknown name, if no claim named is still open, and for claims whose study has
    results already: then it is too late.
    """
    path = Path(path or paths.ROOT / "data" / "claims.yaml")
    known = claims.load(path)
    valid = {name for claim in known for name in (claim.family, claim.id)}
    for name in names:
        if name not in valid:
            raise UserError(f"There is no family or claim {name!r}{nearest(name, valid)}")
    named = [claim for claim in known if {claim.family, claim.id} & set(names)]
    chosen = [claim for claim in named if claim.frozen is None]
    if not chosen:
        raise UserError(f"All claims of {', '.join(names)} are frozen already.")
    _refuse_if_known(chosen)
    text = path.read_text(encoding="utf-8")
    for claim in chosen:
        entry = re.compile(
            rf"(^  - id: {re.escape(claim.id)}\n(?:(?!  - id: ).*\n)*?    frozen: )null$",
            re.MULTILINE,
        )
        text, count = entry.subn(rf"\g<1>{claims.claim_hash(claim)}", text)
        if count != 1:
            raise UserError(f"{path}: claim {claim.id!r} has no line `frozen: null` to fill in.")
    files.write_atomic(path, text.encode())
    claims.load(path)  # every hash is right, or this says which is not
    return [claim.id for claim in chosen]


def _refuse_if_known(chosen: Sequence[claims.Claim]) -> None:
    """UserError if a claim's evidence comes from the study and the study has results."""
    from dalle3lib import study_evidence, study_results

    studied = [claim.id for claim in chosen if claim.id in study_evidence.CLAIMS]
    found = study_results.names("main")
    if studied and found:
        raise UserError(
            f"It is too late to freeze {studied[0]!r}: its study has {len(found)} results in "
            f"{found[0].parent}; add a new claim, and test it on seeds that nobody has seen."
        )
