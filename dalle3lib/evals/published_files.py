"""The files that OpenAI released with the paper's evaluation, and T2I-CompBench's own prompts.

Both are public and neither is part of this project: they are read from a folder, or fetched from
their public home at a pinned revision. Every file is checked against its SHA-256 either way, so
that a count is always a count of the same bytes.
"""

from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from tqdm.auto import tqdm

from dalle3lib import UserError, config, paths
from dalle3lib import released_prompts as released
from dalle3lib.caption_sets import Download

# The benchmark files keep this folder of the repository under a name without the space.
RENAMED = ("t2i compbench", "t2i_compbench")


class Collection(NamedTuple):
    """Public files of one repository: their folder's name, their home, a Download for each."""

    name: str
    home: str
    files: dict[str, Download]


def _pinned(raw: str, table: str) -> dict[str, Download]:
    """Downloads by path, from lines of size, SHA-256 and path (which may hold spaces)."""
    rows = [line.split(maxsplit=2) for line in table.strip().splitlines()]
    return {name: Download(f"{raw}/{quote(name)}", int(size), sha) for size, sha, name in rows}


RELEASED = Collection(
    "dalle3-eval-samples",
    released.HOME,  # MIT licence; COCO's captions are CC BY 4.0, DrawBench's prompts Imagen's
    _pinned(
        released.RAW,
        """
239789 0a862ecd28b00a5a0106b1df25f29458e3b547953ad54174b32ac3276f7a242a drawbench/2/drawbench_results.json
233810 1b88ba2e36601bb866c63271047e50fa486e75d1aa21cd774469fdc12b104146 drawbench/3/drawbench_results.json
237632 5ba9150205416e1ce0bf8a185ed826c41e8dcbd99b1cbfd9e752ebdd27595006 drawbench/sdxl/drawbench_results.json
4182 6d2915acfd3670850ca485491c5c1e2e6d9db8089835ba5704803caa6794209b drawbench_upsampled/sdxl/drawbench_results.json
434363 adb3104d68aae027be0da1d078f9ea7eca83f07d098aaa39a400dc6474640c8a prompts/8k_coco.txt
49613 5f1e2c4e11737f26e9573f4e86148731fce28f2e307ba80657f47f095a75b8c0 prompts/dalle3_eval.txt
12977 3d4f4b2db7520208ee056d470202c07fd77766b96d133ea9f4ab00a323381e9a prompts/drawbench.txt
72916 8405d5e1318c8bc9f5bc8c3e41fdfaab5587170a9f4fa6d8c3e2f2d0ba8ed18e prompts/drawbench_upsampled.txt
11875 1e37a12c1861bf6b11623eaffb0bf6d6eeea9702caf45b95d040f1721bba7f4f prompts/t2i compbench/color_val.txt
22724 1b808018b8d9916db3d47d5aa2ef18377a3549a56901a474156f799824cdf3b4 prompts/t2i compbench/complex_val.txt
17698 d49ee4c7f99e3f3379fb8704a54ff5288b83bb412971edf616a4721c2473308e prompts/t2i compbench/complex_val_action.txt
2898 6c7ac0ab75c7c9080cfc7b421fb059b9b0febb98471707aeedf58771088abc02 prompts/t2i compbench/complex_val_spatial.txt
17750 04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d prompts/t2i compbench/non-spatial_val.txt
15935 37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae prompts/t2i compbench/shape_val.txt
14211 fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f prompts/t2i compbench/texture_val.txt
""",  # noqa: E501
    ),
)
# Its list of colours changed on 2025-09-03 (commit 3310c2f): five duplicate lines were replaced.
COMPBENCH = Collection(
    "t2i-compbench",
    "https://github.com/Karine-Huang/T2I-CompBench",  # MIT licence
    _pinned(
        "https://raw.githubusercontent.com/Karine-Huang/T2I-CompBench/"
        "1b7094991a57f3c22abdd4f6e8ba6c1a15517073/examples/dataset",
        """
11871 1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d color_val.txt
22724 1b808018b8d9916db3d47d5aa2ef18377a3549a56901a474156f799824cdf3b4 complex_val.txt
17698 d49ee4c7f99e3f3379fb8704a54ff5288b83bb412971edf616a4721c2473308e complex_val_action.txt
2898 6c7ac0ab75c7c9080cfc7b421fb059b9b0febb98471707aeedf58771088abc02 complex_val_spatial.txt
17750 04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d non_spatial_val.txt
15935 37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae shape_val.txt
14211 fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f texture_val.txt
""",
    ),
)


def folder(named: str, collection: Collection = RELEASED) -> Path | None:
    """The folder of a collection that a parameter names; None if the benchmarks lack a file of it.

    ``named`` is ``"benchmarks"`` (the folder of the collection's name under
    ``DALLE3_BENCHMARKS``), ``"download"`` (fetched once, into the runs' cache), or a folder.
    Raises UserError for a folder that is not there, and as ``fetch`` does.
    """
    if named == "benchmarks":
        benchmarks = paths.benchmarks()
        found = benchmarks and benchmarks / collection.name
        whole = found and all(_place(found, name).is_file() for name in collection.files)
        return found if whole else None
    if named == "download":
        return fetch(paths.runs_dir() / ".cache" / "benchmarks" / collection.name, collection)
    if not paths.folder(named).is_dir():
        raise UserError(
            f"No folder {named!r} with the files of {collection.home}; give a folder, "
            "'benchmarks' (under DALLE3_BENCHMARKS) or 'download'."
        )
    return paths.folder(named)


def fetch(where: str | Path, collection: Collection = RELEASED) -> Path:
    """Download a collection's files into a folder, as far as they are missing; return the folder.

    Raises UserError without a network, and if what comes is not what was published.
    """
    where = Path(where).expanduser()
    for name, file in tqdm(collection.files.items(), desc=collection.name, disable=None):
        released.download(file, where / name)
    return where


def read(where: str | Path, name: str, collection: Collection = RELEASED) -> str:
    """The text of a collection's file in a folder, by its public path.

    Raises UserError for an unknown name, and for a file that is missing or altered.
    """
    if name not in collection.files:
        nearest = config.nearest(name, collection.files)
        raise UserError(f"{collection.name} has no {name!r}{nearest}")
    return released.checked(_place(where, name), collection.files[name]).decode("utf-8")


def _place(where: str | Path, name: str) -> Path:
    """Where a file with a public path lies in a folder."""
    path, renamed = Path(where) / name, Path(where) / name.replace(*RENAMED)
    return renamed if renamed.is_file() else path
