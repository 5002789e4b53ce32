"""The data set's metadata in MLCommons' format Croissant, version 1.0: ``data/croissant.json``.

``python -m dalle3lib cards`` makes it from the files themselves. The captions are one file, with
its hash. The study's results grow while it runs, so they are described by a pattern and by their
columns. The world has no files: a few of its records stand in the metadata, and the description
says how to make all of them.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dalle3lib import UserError, __version__, files, launch, paths

# The standard context of Croissant 1.0, as its specification prints it.
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "conformsTo": "dct:conformsTo",
} | {
    name: f"cr:{name}"
    for name in (
        *("citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty"),
        *("fileObject", "fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key"),
        *("md5", "parentField", "path", "recordSet", "references", "regex", "repeated"),
        *("replace", "samplingRate", "separator", "source", "subField", "transform"),
    )
}
CAPTIONS = "captions/world-train.parquet"
SHARES = {  # of scenes by split, and what each is for
    "foundation": "40 %: pretrained parts and captioners",
    "train": "40 %: diffusion models",
    "dev": "8 %: choosing settings",
    "test": "12 %: evaluation",
}
SHOWN = 2  # records of each split in the metadata
COLUMNS = {
    "world": {
        "key": "split and index: all that is needed to make the record again",
        "split": "foundation, train, dev or test",
        "alt": "alt-text at the default noise level, 0.5",
        "short": "human-style caption of the main subject",
        "descriptive": "human-style caption of every fact",
    },
    "captions": {
        "key": "name of the record: its split and index in the world",
        "picture": "blake2b digest of the picture's pixels, by which a caption is found",
        "alt": "the record's alt-text at the default noise level",
        "ssc": "short synthetic caption, written by the foundation coca-ssc",
        "dsc": "descriptive synthetic caption, written by the foundation coca-dsc",
    },
    "prompts": {
        "kind": "original, short, upsampled, descriptive or reworded",
        "prompt": "what the models were asked to draw",
        "key": "the record whose caption it is, or was made from",
        "facts": "how many facts the prompt states",
        "objects": "how many objects the prompt names",
        "named": "whether the record's short prompt names every object of the scene",
    },
    "results": {
        "kind": "the prompt's kind; rows are in the order of the stage's prompts.parquet",
        "step": "training step of the averaged weights that drew the picture",
        "score": "CLIP score of picture and prompt: 100 times the cosine",
        "short facts": "share of the short prompt's facts that the reader finds in the picture",
        **{
            kind: f"share of the scene's facts of this kind ({kind}) that the reader finds"
            for kind in (
                *("background", "count", "colour-shape", "texture-shape", "size-shape"),
                *("colour-shape-place", "word"),
            )
        },
    },
}
DESCRIPTION = """\
Captioned scenes of a procedural world with exact ground truth, made to study how the captions of a
text-to-image model's training data change what it learns (after "Improving Image Generation with
Better Captions", Betker et al. 2023). A record is a picture of 64 x 64 pixels, a noisy web-style
alt-text, a short and a descriptive human-style caption, and the exact facts. Records are functions
of a split's name and an index: dalle3lib.world.World("train", 20000) makes them, the same on every
machine, so no picture is stored. Stored are the captions that two fine-tuned captioners wrote for
the first 20,000 training pictures, and the results of a study that trains diffusion models on
blends of these captions with several paired seeds."""
LIMITS = """\
Flat shapes in 64 x 64 pixels, English captions from a few dozen sentence patterns: effects here
show a mechanism, not its size on photographs. The noise of the alt-text follows published counts of
web alt-text in form, and a parameter in content."""


def document(data: Path | None = None) -> dict[str, Any]:
    """The metadata of the folder ``data`` (``data/`` of the repository), ready for JSON.

    Raises UserError for a column that is described nowhere, or described and not there.
    """
    data = data or paths.ROOT / "data"
    address, cited = launch.repository(), launch.citation()
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "better-captions-world",
        "description": " ".join(DESCRIPTION.split()),
        "version": __version__,
        "license": "https://spdx.org/licenses/MIT",
        "creator": {"@type": "sc:Organization", "name": "The dalle3lib authors"},
        "keywords": ["image captions", "text-to-image", "synthetic data", "reproducibility"],
        "citeAs": f"{cited['authors'][0]['name']}: {cited['title']}, version {__version__}",
        **({"url": address} if address else {}),
        **({"datePublished": str(d)} if (d := cited.get("date-released")) else {}),
        "rai:dataCollection": "Generated by the package dalle3lib; nothing was collected.",
        "rai:dataLimitations": " ".join(LIMITS.split()),
        "rai:personalSensitiveInformation": "None: no person, place or work of art is depicted.",
        "distribution": distribution(data),
        "recordSet": record_sets(data),
    }


def distribution(data: Path) -> list[dict[str, Any]]:
    """The file of captions with its hash, and the patterns of the study's files."""
    captions = files.listing(data, [data / CAPTIONS])[CAPTIONS]
    listed: list[dict[str, Any]] = [
        {
            "@type": "cr:FileObject",
            "@id": "captions-file",
            "description": "Synthetic captions of the first 20,000 training pictures.",
            "contentUrl": CAPTIONS,
            "contentSize": f"{captions['size']} B",
            "encodingFormat": "application/x-parquet",
            "sha256": captions["sha256"],
        }
    ]
    sets = {
        "prompts-files": ("study/*/prompts.parquet", "What every run of a stage was asked."),
        "results-files": (
            "study/*/*-*-*.parquet",
            "A file for each run, kind-ratio-seed.parquet; its metadata says how it was made.",
        ),
    }
    for name, (pattern, said) in sets.items():
        listed.append(
            {
                "@type": "cr:FileSet",
                "@id": name,
                "description": said,
                "includes": pattern,
                "encodingFormat": "application/x-parquet",
            }
        )
    return listed


def record_sets(data: Path) -> list[dict[str, Any]]:
    """The world with a few of its records, and the tables with their columns."""
    from dalle3lib.world import World

    rows = [
        {
            "world/key": record.key,
            "world/split": split,
            "world/alt": record.alt,
            "world/short": record.short,
            "world/descriptive": record.descriptive,
        }
        for split in SHARES
        for record in World(split, SHOWN)
    ]
    shares = "; ".join(f"{split} {text}" for split, text in SHARES.items())
    world = {
        "@type": "cr:RecordSet",
        "@id": "world",
        "description": f"Examples: the first {SHOWN} records of each split ({shares}).",
        "key": {"@id": "world/key"},
        "field": [_field("world", name, "sc:Text") for name in COLUMNS["world"]],
        "data": rows,
    }
    first = {
        "captions": ("captions-file", data / CAPTIONS),
        "prompts": ("prompts-files", min(data.glob("study/*/prompts.parquet"))),
        "results": ("results-files", min(data.glob("study/*/*-*-*.parquet"))),
    }
    return [world] + [table(name, source, path) for name, (source, path) in first.items()]


def table(name: str, source: str, path: Path) -> dict[str, Any]:
    """The record set of a parquet file, or of files with the same columns, of which this is one."""
    schema = pq.read_schema(path)
    if gone := set(schema.names) ^ set(COLUMNS[name]):
        raise UserError(
            f"The columns {sorted(gone)} are in {path} or in croissant.COLUMNS, but not in both; "
            "describe what the file holds."
        )
    kind = "fileObject" if source == "captions-file" else "fileSet"
    fields = [
        _field(name, column.name, _type(column.type))
        | {"source": {kind: {"@id": source}, "extract": {"column": column.name}}}
        for column in schema
    ]
    return {"@type": "cr:RecordSet", "@id": name, "field": fields}


def _field(record_set: str, column: str, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{record_set}/{column.replace(' ', '-')}",
        "name": column,
        "description": COLUMNS[record_set][column],
        "dataType": kind,
    }


def _type(kind: pa.DataType) -> str:
    """The data type of a parquet column in the words of schema.org."""
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else "sc:Text"


def write(data: Path | None = None) -> Path:
    """Write ``croissant.json`` into the folder ``data``; return its path."""
    data = data or paths.ROOT / "data"
    files.write_atomic(data / "croissant.json", (files.to_json(document(data)) + "\n").encode())
    return data / "croissant.json"
