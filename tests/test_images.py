"""Photographs of every kind become the right pixels, and every bad folder one clear sentence."""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from dalle3lib import UserError, coco
from dalle3lib.images import Record, decode, to_tensor, to_uint8
from dalle3lib.splits import (
    SPLITS,
    Folder,
    first_of_folder,
    open_source,
    overlap,
    split_keys,
    split_names,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def save(path, pixels, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8), mode).save(path, **options)
    return path


def solid(colour, height=8, width=8):
    return np.full((height, width, len(colour)), colour, dtype=np.uint8)


def write_captions(folder, images, annotations, name="captions.json"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


@pytest.fixture
def photos(tmp_path):
    """A sound folder of ten images, a000.png … a009.png, each with one caption."""
    names = [f"a{i:03d}.png" for i in range(10)]
    for i, name in enumerate(names):
        save(tmp_path / "img" / name, solid((20 * i, 0, 0)))
    write_captions(
        tmp_path,
        [{"id": i, "file_name": name} for i, name in enumerate(names)],
        [{"id": 100 + i, "image_id": i, "caption": f"photo {i}"} for i in range(10)],
    )
    return tmp_path


def change(folder, edit):
    """Applies ``edit`` to the parsed captions file of a folder."""
    path = folder / "captions.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def problem(folder, split="train"):
    """The one sentence that opening the folder gives."""
    with pytest.raises(UserError) as caught:
        Folder(folder, split)
    return str(caught.value)


# --- decoding ------------------------------------------------------------------------------------


def quadrants():
    """Top left red, top right green, bottom left blue, bottom right white: uint8 [8, 8, 3]."""
    pixels = solid(WHITE)
    pixels[:4, :4], pixels[:4, 4:], pixels[4:, :4] = RED, GREEN, BLUE
    return pixels


def corners(image):
    """Colours of the four corners, clockwise from top left."""
    return [tuple(int(v) for v in image[y, x]) for y, x in ((0, 0), (0, -1), (-1, -1), (-1, 0))]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [RED, GREEN, WHITE, BLUE]),
        (2, [GREEN, RED, BLUE, WHITE]),  # mirrored
        (3, [WHITE, BLUE, RED, GREEN]),  # upside down
        (6, [BLUE, RED, GREEN, WHITE]),  # turned clockwise
        (8, [GREEN, WHITE, BLUE, RED]),  # turned anticlockwise
    ],
)
def test_exif_rotation_is_applied(tmp_path, orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", quadrants(), exif=exif)
    assert corners(decode(path, 8)) == expected


def test_exif_rotation_of_an_oblong_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.concatenate([solid(RED, 64, 64), solid(BLUE, 64, 64)], axis=1)  # 64 high, 128 wide
    path = save(tmp_path / "a.jpg", pixels, exif=exif, quality=95)
    image = decode(path, 16).astype(int)  # turned clockwise: red above blue
    assert np.abs(image[0] - RED).max() < 10
    assert np.abs(image[-1] - BLUE).max() < 10


def test_grey_and_black_and_white(tmp_path):
    save(tmp_path / "l.png", np.full((6, 6), 77))
    assert (decode(tmp_path / "l.png", 4) == 77).all()
    Image.new("1", (6, 6), 1).save(tmp_path / "1.png")
    assert (decode(tmp_path / "1.png", 4) == 255).all()


def test_cmyk(tmp_path):
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)  # no cyan
    image = decode(tmp_path / "a.jpg", 8).astype(int)
    assert image.shape == (8, 8, 3)
    assert image[..., 0].min() > 240
    assert image[..., 1:].max() < 15


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 2)[..., 0].tolist() == [[0, 100], [200, 255]]


def test_alpha_is_put_on_white(tmp_path):
    save(tmp_path / "rgba.png", solid((255, 0, 0, 0)))
    assert (decode(tmp_path / "rgba.png", 4) == 255).all()
    save(tmp_path / "half.png", solid((0, 0, 0, 51)))  # one fifth black
    assert (decode(tmp_path / "half.png", 4) == 204).all()
    save(tmp_path / "la.png", solid((0, 0)))
    assert (decode(tmp_path / "la.png", 4) == 255).all()


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (0, 0, 4, 2))
    image.save(tmp_path / "a.png", transparency=0)
    assert corners(decode(tmp_path / "a.png", 4)) == [BLUE, BLUE, WHITE, WHITE]


@pytest.mark.parametrize("shape", [(1, 1), (1, 301), (301, 1), (33, 17), (2, 3)])
@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_odd_sizes(tmp_path, shape, extension):
    path = save(tmp_path / f"a.{extension}", solid((40, 40, 40), *shape))
    image = decode(path, 16)
    assert image.shape == (16, 16, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - 40).max() <= 3


def test_the_centre_is_kept(tmp_path):
    pixels = np.concatenate([solid(RED), solid(GREEN), solid(BLUE)], axis=1)
    wide = decode(save(tmp_path / "wide.png", pixels), 8).astype(int)
    assert (wide[:, 2:-2] == GREEN).all()  # the filter may see a little beyond the edges
    assert np.abs(wide - GREEN).max() < 30
    tall = decode(save(tmp_path / "tall.png", pixels.transpose(1, 0, 2)), 8)
    assert (tall == wide.transpose(1, 0, 2)).all()


def test_downscaling_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64, 3))
    stripes[:, ::2] = 255  # picking single pixels would give black or white
    image = decode(save(tmp_path / "a.png", stripes), 8)
    assert np.abs(image.astype(int) - 127.5).max() < 6


def test_wrong_extension_is_read_by_its_content(tmp_path):
    path = save(tmp_path / "a.jpg", solid(GREEN), format="PNG")
    assert (decode(path, 4) == GREEN).all()


def test_the_first_picture_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert (decode(tmp_path / "a.webp", 4) == RED).all()


def noise(path, **options):
    rng = np.random.default_rng(0)
    return save(path, rng.integers(0, 256, (48, 48, 3)), **options)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
@given(share=st.floats(0, 0.98))
def test_a_truncated_image_never_passes(tmp_path_factory, extension, share):
    path = noise(tmp_path_factory.mktemp("cut") / f"a.{extension}")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError):
        decode(path, 8)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.filterwarnings("ignore")  # Pillow warns about damaged metadata
@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_damaged_byte_gives_pixels_or_a_reason(tmp_path_factory, extension, position, value):
    path = noise(tmp_path_factory.mktemp("flip") / f"a.{extension}")
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] = value
    path.write_bytes(content)
    try:
        assert decode(path, 8).shape == (8, 8, 3)
    except ValueError as error:
        assert str(error)


def test_no_other_format_is_decoded(tmp_path):
    path = save(tmp_path / "a.png", solid(RED), format="TIFF")
    with pytest.raises(ValueError, match="no JPEG, PNG or WebP"):
        decode(path, 4)


def bomb(path, side):
    """A PNG whose header claims side × side pixels, with hardly any data behind it."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 30_000])  # above Pillow's warning, above its error
def test_a_bomb_is_stopped_at_its_header(tmp_path, side):
    with pytest.raises(ValueError, match="header claims over"):
        decode(bomb(tmp_path / "a.png", side), 8)


# --- tensors -------------------------------------------------------------------------------------


def test_to_tensor_by_hand():
    images = np.array([[[[0, 255, 51]]]], dtype=np.uint8)  # one image of one pixel
    tensor = to_tensor(images)
    assert tensor.shape == (1, 3, 1, 1) and tensor.dtype == torch.float32
    assert tensor.flatten().tolist() == pytest.approx([-1, 1, -0.6])


def test_to_uint8_inverts_to_tensor():
    images = np.arange(2 * 16 * 8 * 3, dtype=np.uint16).astype(np.uint8).reshape(2, 16, 8, 3)
    assert (to_uint8(to_tensor(images)) == images).all()


def test_to_uint8_clips():
    assert to_uint8(torch.tensor([-3.0, 0.2, 3.0]).view(1, 3, 1, 1)).flatten().tolist() == [
        0,
        153,
        255,
    ]


# --- folders -------------------------------------------------------------------------------------


def test_a_sound_folder(photos):
    records = [r for split in SPLITS for r in Folder(photos, split, size=4)]
    assert sorted(r.key for r in records) == [f"a{i:03d}.png" for i in range(10)]
    for record in records:
        number = int(record.key[1:4])
        assert record.alt == f"photo {number}"
        assert (record.image == (20 * number, 0, 0)).all()
        assert record.image.shape == (4, 4, 3)
        assert record.short is record.descriptive is record.facts is None


def test_indices_and_slices(photos):
    folder = Folder(photos, "train")
    assert folder[-1].key == folder[len(folder) - 1].key
    assert [r.key for r in folder[1:3]] == [folder[1].key, folder[2].key]
    with pytest.raises(IndexError):
        folder[len(folder)]


def test_the_alt_text_is_the_caption_with_the_lowest_id(photos):
    extra = [{"id": 99, "image_id": 3, "caption": "  the\nfirst  "}]
    change(photos, lambda content: content["annotations"].extend(extra))
    captions = {r.key: r.alt for split in SPLITS for r in Folder(photos, split)}
    assert captions["a003.png"] == "the first"
    assert captions["a004.png"] == "photo 4"


def test_a_changed_folder_is_read_again(photos):
    before = {r.key: r.alt for s in SPLITS for r in Folder(photos, s)}
    change(photos, lambda content: content["annotations"][0].update(caption="a new text"))
    after = {r.key: r.alt for s in SPLITS for r in Folder(photos, s)}
    assert before["a000.png"] == "photo 0" and after["a000.png"] == "a new text"


def test_the_captions_may_lie_in_annotations_beside_other_json(photos):
    (photos / "annotations").mkdir()
    (photos / "captions.json").rename(photos / "annotations" / "captions_train.json")
    boxes = {"images": [], "annotations": [{"id": 1, "bbox": [0, 0, 1, 1]}]}
    (photos / "annotations" / "instances.json").write_text(json.dumps(boxes))
    assert len(Folder(photos, "train")) > 0


def test_file_names_with_folders_tell_equal_names_apart(tmp_path):
    names = ["x/a.png", "y/a.png", "b.png"]
    for name, colour in zip(names, (RED, GREEN, BLUE), strict=True):
        save(tmp_path / "deep" / name, solid(colour))
    write_captions(
        tmp_path,
        [{"id": i, "file_name": name} for i, name in enumerate(names)],
        [{"id": i, "image_id": i, "caption": name} for i, name in enumerate(names)],
    )
    images = {r.key: tuple(r.image[0, 0].tolist()) for s in SPLITS for r in Folder(tmp_path, s)}
    assert images == {"x/a.png": RED, "y/a.png": GREEN, "b.png": BLUE}


@given(st.sets(st.text(min_size=1), min_size=3, max_size=60))
def test_splits_share_nothing_and_miss_nothing(keys):
    splits = split_keys(keys)
    assert all(splits[name] for name in SPLITS)
    assert sorted(key for name in SPLITS for key in splits[name]) == sorted(keys)
    assert splits == split_keys(sorted(keys, reverse=True))


def test_split_shares_and_stability():
    keys = [f"{i:012d}.jpg" for i in range(4000)]
    splits = split_keys(keys)
    assert [len(splits[name]) / 4000 for name in SPLITS] == pytest.approx(
        [0.8, 0.05, 0.15], abs=0.02
    )
    fewer = split_keys(keys[:2000])
    assert all(set(fewer[name]) <= set(splits[name]) for name in SPLITS)  # nobody has moved


def test_two_images_are_too_few():
    with pytest.raises(UserError, match="at least 3"):
        split_keys(["a", "b"])


# --- bad folders ---------------------------------------------------------------------------------


def test_all_problems_come_in_one_sentence_with_the_first_few_named(photos):
    for i in range(5):
        (photos / "img" / f"a{i:03d}.png").write_bytes(b"")
    (photos / "img" / "a006.png").unlink()
    change(photos, lambda content: content["annotations"][7].update(caption="  "))
    text = problem(photos)
    assert "unreadable image × 5 (img/a000.png: the file is empty, " in text
    assert "img/a002.png: the file is empty, …)" in text and "a003" not in text
    assert "image file missing × 1 (a006.png)" in text
    assert "empty caption × 1 (annotation 107 of a007.png)" in text
    assert text.startswith(f"{photos} has 8 problems: ")  # a007.png is now without a caption too
    assert "correct captions.json" in text


def test_a_truncated_image_of_another_split_is_found_at_once(photos):
    path = photos / "img" / Folder(photos, "test")[0].key
    noise(path)
    path.write_bytes(path.read_bytes()[:-200])
    assert f"unreadable image × 1 (img/{path.name}: " in problem(photos, "train")


def test_an_image_that_nobody_describes(photos):
    save(photos / "img" / "stray.png", solid(RED))
    change(photos, lambda content: content["annotations"].pop(4))
    assert "image without a caption × 2 (a004.png, img/stray.png)" in problem(photos)


def test_a_file_name_in_two_places(photos):
    save(photos / "copy" / "a001.png", solid(RED))
    assert "file name found more than once × 1 (copy/a001.png and img/a001.png)" in problem(photos)


def test_a_file_name_listed_twice(photos):
    change(photos, lambda c: c["images"].append({"id": 55, "file_name": "a001.png"}))
    assert "file name listed more than once × 1 (a001.png)" in problem(photos)


def test_an_image_id_given_twice(photos):
    change(photos, lambda c: c["images"][1].update(id=0))
    assert "image id given twice × 1 (0 (a000.png, a001.png))" in problem(photos)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda c: c["images"].append({"id": 1}), 'entry of "images" without a whole id'),
        (
            lambda c: c["images"].append({"id": float("inf"), "file_name": "b.png"}),
            'entry of "images" without a whole id',
        ),
        (lambda c: c["images"].append("a.png"), 'entry of "images" without a whole id'),
        (lambda c: c["annotations"].append({"id": 1, "image_id": 1}), "annotation without a whole"),
        (
            lambda c: c["annotations"].append({"id": 1, "image_id": 1, "caption": None}),
            "annotation without a whole id",
        ),
        (
            lambda c: c["annotations"].append({"id": 7, "image_id": 77, "caption": "x"}),
            "annotation of an image that is not listed × 1 (annotation 7)",
        ),
    ],
)
def test_damaged_entries(photos, edit, expected):
    change(photos, edit)
    assert expected in problem(photos)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "captions.json is not readable JSON"),
        ("\xff", "captions.json is not readable JSON"),
        ("[" * 100_000, "captions.json is not readable JSON"),
        ("[1]", 'captions.json has no "images"'),
        ('{"images": [], "annotations": []}', 'captions.json has no "images"'),
        ('{"images": {}, "annotations": [{"caption": "a"}]}', 'captions.json has no "images"'),
    ],
)
def test_no_usable_captions_file(photos, content, expected):
    (photos / "captions.json").write_bytes(content.encode("latin-1"))
    text = problem(photos)
    assert f"{photos} has no captions file ({expected}" in text
    assert "add one COCO-format JSON" in text


def test_no_captions_file_at_all(photos):
    (photos / "captions.json").unlink()
    assert "has no captions file (no *.json in it)" in problem(photos)


def test_two_captions_files(photos):
    (photos / "other.json").write_bytes((photos / "captions.json").read_bytes())
    text = problem(photos)
    assert "has 2 captions files (captions.json, other.json): leave exactly one." in text


def test_an_empty_folder(tmp_path):
    assert "holds no images" in problem(tmp_path)


def test_more_images_than_memory_holds(photos):
    with pytest.raises(UserError, match="more than 8 GB of memory"):
        Folder(photos, "train", size=20_000)


def test_unknown_split_and_size(photos):
    assert 'not "val"' in problem(photos, "val")
    with pytest.raises(UserError, match="at least 1 pixel"):
        Folder(photos, "train", size=0)
    with pytest.raises(UserError, match="is not a folder"):
        Folder(photos / "captions.json", "train")


# --- sources -------------------------------------------------------------------------------------


def test_open_source_of_a_folder(photos):
    assert [r.key for r in open_source(str(photos), "train", 3)] == [
        r.key for r in Folder(photos, "train")[:3]
    ]
    assert len(open_source(str(photos), "train", 1000)) == len(Folder(photos, "train"))


def test_open_source_of_the_world():
    records = open_source("world", "test", 2)
    assert len(records) == 2
    assert records[0].image.shape == (64, 64, 3)
    assert records[0].alt and records[0].short and records[0].descriptive and records[0].facts
    with pytest.raises(UserError, match="use size 64"):
        open_source("world", "test", 2, size=32)


@pytest.mark.parametrize("data", ["World", "wrld", "/no/such/folder", __file__])
def test_an_unknown_source(data):
    with pytest.raises(UserError, match='neither "world" nor an existing folder'):
        open_source(data, "train", 1)


def test_the_coco_photographs(benchmarks):
    folder = benchmarks / "coco-mini"
    records = [r for split in SPLITS for r in Folder(folder, split)]
    assert len(records) == 26
    assert [len(Folder(folder, split)) for split in SPLITS] == [17, 2, 7]
    captions = {r.key: r.alt for r in records}
    assert captions["000000125870.jpg"] == (
        "An airport filled with large passenger jets parked next to each other."
    )
    for record in records:
        assert record.image.shape == (64, 64, 3) and record.image.std() > 10
        whole = Image.open(folder / "train2017" / record.key).convert("RGB")
        side = min(whole.size)
        left, top = (whole.width - side) / 2, (whole.height - side) / 2
        plain = whole.resize(
            (64, 64), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
        )
        # decoding at half size first may change a pixel a little, never the picture
        assert np.abs(np.asarray(plain, int) - record.image).mean() < 3


def test_overlap_by_hand():
    def record(key, value, facts=None):
        return Record(key, np.full((2, 2, 3), value, dtype=np.uint8), "text", facts=facts)

    some = [record("a", 1), record("b", 2)]
    assert overlap(some, some) == {"keys": 2, "pictures": 2}
    assert overlap(some, [record("c", 2), record("a", 3)]) == {"keys": 1, "pictures": 1}
    known = [record("d", 4, {"x": 1, "y": 2})]
    assert overlap(known, [record("e", 5, {"y": 2, "x": 1})]) == {
        "keys": 0,
        "pictures": 0,
        "facts": 1,
    }
    assert overlap(some, known) == {"keys": 0, "pictures": 0}  # facts on one side only


def test_split_names_can_be_opened(photos):
    for data in (str(photos), "world"):
        for name in split_names(data):
            assert len(open_source(data, name, 1)) == 1
    assert "foundation" in split_names("world")


def test_the_first_of_a_folder_for_evaluation(photos):
    everything = {r.key: r for name in SPLITS for r in Folder(photos, name, 32)}
    records = first_of_folder(photos, 4, 32)
    ordered = [key for keys in split_keys(everything).values() for key in keys]
    assert [r.key for r in records] == ordered[:4]
    for record in records:
        assert np.array_equal(record.image, everything[record.key].image)
        assert record.alt == everything[record.key].alt
    assert len(first_of_folder(photos, 1000, 16)) == len(everything)
    with pytest.raises(UserError, match="is not a folder"):
        first_of_folder(photos / "nothing", 4, 32)


def test_references_are_all_captions_in_the_order_of_their_ids(tmp_path):
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    said = [(7, 1, "second"), (3, 1, " first\n one "), (9, 2, "only"), (8, 2, " ")]
    annotations = [{"id": i, "image_id": image, "caption": text} for i, image, text in said]
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations" / "captions.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    found = coco.references(tmp_path)
    assert found == {"a.png": ["first one", "second"], "b.png": ["only"]}
