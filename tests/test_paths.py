"""Where things are, and that a damaged foundation is never used."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dalle3lib import UserError, files, paths


@pytest.fixture
def vae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A foundation called ``vae`` with two small files."""
    monkeypatch.setenv("DALLE3_FOUNDATION", str(tmp_path))
    directory = tmp_path / "vae"
    directory.mkdir()
    (directory / "weights.safetensors").write_bytes(bytes(range(256)))
    (directory / "config.json").write_text('{"channels": 4}')
    listed = {
        path.name: {"sha256": files.sha256(path), "size": path.stat().st_size}
        for path in directory.iterdir()
    }
    (directory / "manifest.json").write_text(json.dumps({"name": "vae", "files": listed}))
    return directory


def test_places_follow_the_environment(monkeypatch, tmp_path):
    assert paths.runs_dir() == paths.ROOT / "runs"
    assert paths.presets_dir() == paths.ROOT / "notebooks" / "presets"
    monkeypatch.setenv("DALLE3_RUNS", str(tmp_path))
    monkeypatch.setenv("DALLE3_NOTEBOOKS", str(tmp_path))
    monkeypatch.delenv("DALLE3_BENCHMARKS", raising=False)
    assert paths.runs_dir() == tmp_path
    assert paths.presets_dir() == tmp_path / "presets"
    assert paths.benchmarks() is None
    monkeypatch.setenv("DALLE3_BENCHMARKS", str(tmp_path))
    assert paths.benchmarks() == tmp_path


def test_sha256_is_the_published_digest(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(tmp_path / "abc") == expected


def test_a_whole_foundation_is_found(vae):
    assert paths.foundation("vae") == vae


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 2047), name=st.sampled_from(["weights.safetensors", "config.json"]))
def test_one_flipped_bit_is_noticed(vae, flip, bit, name):
    flip(vae / name, bit)
    with pytest.raises(UserError, match=rf"{name} is damaged.*git checkout data/foundation"):
        paths.foundation("vae")
    flip(vae / name, bit)
    assert paths.foundation("vae") == vae


def test_a_short_or_missing_file_is_noticed(vae):
    weights = vae / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match="has 255 bytes instead of 256"):
        paths.foundation("vae")
    weights.unlink()
    with pytest.raises(UserError, match="weights.safetensors is missing"):
        paths.foundation("vae")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": 3}', "null"])
def test_a_damaged_foundation_manifest_is_noticed(vae, content):
    (vae / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="manifest.json is damaged"):
        paths.foundation("vae")


def test_an_unknown_foundation_is_named(vae):
    with pytest.raises(UserError, match="Foundation 't6' cannot be used: .* is missing"):
        paths.foundation("t6")


def test_every_shipped_foundation_is_whole():
    for manifest in paths.foundation_dir().glob("*/manifest.json"):
        assert paths.foundation(manifest.parent.name) == manifest.parent
