"""A notebook's parameters: explicit beats preset, and every mistake is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle3lib import UserError, config, paths

DECLARED = (
    "steps: int = None  # training steps\n"
    "lr: float = None  # peak learning rate, per step\n"
    'kind: str = "dsc"  # caption kind\n'
    "fast: bool = None  # leave out the slow figures\n"
    "ratios: list = None  # synthetic share, percent\n"
)
SMOKE = """\
common: {data: world, steps: 5}
02_captioning: {lr: 0.001, fast: true, ratios: [0, 95], steps: 7}
"""


@pytest.fixture
def captioning(tiny):
    """Two notebooks and a preset that sets everything the second one needs."""
    path = tiny("02_captioning", DECLARED)
    tiny("01_world", "steps: int = None  # scenes\n")
    (paths.presets_dir() / "smoke.yaml").write_text(SMOKE)
    return path


def scope(**changes):
    """The variables of a kernel that ran the parameters cell, with some of them changed."""
    declared = {"preset": "smoke", "data": None, "steps": None, "lr": None, "kind": "dsc"}
    return declared | {"fast": None, "ratios": None} | changes


def test_declarations_are_read_with_their_meaning(captioning):
    declared = config.notebook_parameters(captioning)
    assert list(declared) == ["preset", "data", "steps", "lr", "kind", "fast", "ratios"]
    assert declared["lr"] == config.Parameter(float, None, "peak learning rate, per step")
    assert declared["kind"] == config.Parameter(str, "dsc", "caption kind")


def test_a_declaration_may_hold_any_letters(tiny):
    path = tiny("01_world", 'word: str = "déjà # vu"  # what is printed — ü\n')
    expected = config.Parameter(str, "déjà # vu", "what is printed — ü")
    assert config.notebook_parameters(path)["word"] == expected


@pytest.mark.parametrize(
    "line",
    ["steps = 3  # no type", "steps: int = 3", "steps: array = 3  # type", "print(3)  # call",
     "steps: int = 2 + x  # not a value", "steps: int  # no value", "steps: int = = 3  # syntax"],
)  # fmt: skip
def test_a_line_that_declares_nothing_is_refused(tiny, line):
    with pytest.raises(UserError, match="must read `name: type = value  # meaning`"):
        config.notebook_parameters(tiny("01_world", line + "\n"))


def test_a_default_of_the_wrong_type_is_refused(tiny):
    with pytest.raises(UserError, match="'steps' must be of type int, not str 'many'"):
        config.notebook_parameters(tiny("01_world", 'steps: int = "many"  # steps\n'))


def test_a_notebook_needs_one_parameters_cell(captioning):
    captioning.write_text(captioning.read_text().replace('"parameters"', '"other"'))
    with pytest.raises(UserError, match="needs one cell tagged 'parameters', not 0"):
        config.notebook_parameters(captioning)
    captioning.write_text("{")
    with pytest.raises(UserError, match="not a readable notebook"):
        config.notebook_parameters(captioning)


def test_the_section_beats_common_and_explicit_beats_both(captioning):
    cfg = config.resolve("02_captioning", scope(lr=1, kind="ssc"))
    assert (cfg.steps, cfg.fast, cfg.ratios, cfg.data) == (7, True, [0, 95], "world")
    assert cfg.lr == 1.0 and type(cfg.lr) is float  # an int is accepted for a float
    assert cfg.overrides == {"lr": 1.0, "kind": "ssc"}
    assert cfg.values == {"preset": "smoke", "data": "world", "steps": 7, "lr": 1.0, "kind": "ssc",
                          "fast": True, "ratios": [0, 95]}  # fmt: skip
    assert cfg.root == paths.runs_dir() / "smoke"
    assert config.from_preset("01_world", preset="smoke").steps == 5


def test_a_value_equal_to_the_presets_is_no_override(captioning):
    assert config.resolve("02_captioning", scope(steps=7, fast=True)).overrides == {}
    assert config.from_preset("02_captioning", steps=8).overrides == {"steps": 8}


def test_parameters_are_frozen_and_name_the_nearest(captioning):
    cfg = config.resolve("02_captioning", scope())
    with pytest.raises(AttributeError):
        cfg.steps = 3
    with pytest.raises(AttributeError, match="02_captioning has no parameter 'step'.*'steps'"):
        _ = cfg.step


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "smoek"}, r"'smoek' \(no file .*smoek.yaml\); did you mean 'smoke'"),
        ({"preset": "../smoke"}, "Unknown preset"),
        ({"preset": None}, "'preset' must be of type str"),
        ({"steps": "7"}, "'steps' must be of type int, not str '7'"),
        ({"steps": 7.0}, "'steps' must be of type int, not float 7.0"),
        ({"steps": True}, "'steps' must be of type int, not bool True"),
        ({"fast": 1}, "'fast' must be of type bool, not int 1"),
        ({"ratios": (1, 2)}, "'ratios' must be of type list"),
        ({"data": "no/such/folder"}, "No data folder 'no/such/folder'; give 'world' or a folder"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_clear_sentence(captioning, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        config.resolve("02_captioning", scope(**changes))
    assert "\n" not in str(caught.value)


def test_a_choice_that_there_is_not_is_noticed_before_anything_runs():
    with pytest.raises(
        UserError, match="Unknown evidence 'stduy' in 04_caption_kind; did you mean 'study'"
    ):
        config.from_preset("04_caption_kind", preset="smoke", evidence="stduy")
    assert config.from_preset("04_caption_kind", preset="smoke", evidence="none").evidence == "none"


def test_a_value_set_nowhere_is_named(captioning):
    (paths.presets_dir() / "smoke.yaml").write_text(SMOKE.replace("lr: 0.001, ", ""))
    with pytest.raises(UserError, match="'lr' is set neither in the notebook nor in preset"):
        config.resolve("02_captioning", scope())
    assert config.resolve("02_captioning", scope(lr=0.1)).lr == 0.1


def test_a_cell_that_was_not_run_is_named(captioning):
    with pytest.raises(UserError, match="'steps' is not set; run the parameters cell first"):
        config.resolve("02_captioning", {"preset": "smoke", "data": None})


def test_a_name_injected_by_bare_papermill_is_named(captioning):
    injected = "# Parameters\nsteps = 3\nratioes = [\n    1,\n]\n"
    with pytest.raises(UserError, match="no parameter 'ratioes'; did you mean 'ratios'"):
        config.resolve("02_captioning", scope(In=["", "steps = None", injected]))
    unrelated = "# my own cell\nratioes = 3"
    config.resolve("02_captioning", scope(In=["", unrelated, "# Parameters\nsteps = 3\n"]))


def test_an_unknown_notebook_is_named(captioning):
    with pytest.raises(UserError, match="notebook '02_caption'; did you mean '02_captioning'"):
        config.resolve("02_caption", scope())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("common: {stepz: 3}", "section 'common': unknown parameter 'stepz'; did you mean 'steps'"),
        ("01_world: {lr: 0.1}", "section '01_world': unknown parameter 'lr'"),
        ("01_wolrd: {steps: 3}", "no notebook '01_wolrd'; did you mean '01_world'"),
        ("common: {steps: many}", "'steps' must be of type int, not str 'many' in .*smoke.yaml"),
        ("02_captioning: {lr: 1e-3}", r"'lr' must be of type float.*in YAML write 1.0e-3"),
        ("common: [1, 2]", "not a readable preset file"),
        ("common: {a: ", "not a readable preset file"),
        ("- 3", "not a readable preset file"),
        ("!!python/object/apply:os.getcwd []", "not a readable preset file"),
    ],
)
def test_a_mistake_in_a_preset_is_named(captioning, text, message):
    (paths.presets_dir() / "smoke.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        config.preset_values("smoke", "02_captioning")
    assert "\n" not in str(caught.value)


def test_a_preset_changes_what_it_extends(captioning):
    write = {"low": "common: {data: world, steps: 1}\n02_captioning: {fast: true, lr: 0.5}",
             "middle": "extends: low\n02_captioning: {fast: false}",
             "high": "extends: middle\ncommon: {steps: 3}\n01_world: {}"}  # fmt: skip
    for name, text in write.items():
        (paths.presets_dir() / f"{name}.yaml").write_text(text)
    found = {name: config.preset_values(name, "02_captioning") for name in write}
    assert found["low"] == {"data": "world", "steps": 1, "fast": True, "lr": 0.5}
    assert found["middle"] == found["low"] | {"fast": False}
    assert found["high"] == found["middle"] | {"steps": 3}


def test_jobs(captioning):
    write = {"low": "jobs: 5\ncommon: {data: world}", "high": "extends: low", "own": "jobs: 1",
             "wrong": "extends: low\njobs: many"}  # fmt: skip
    for name, text in write.items():
        (paths.presets_dir() / f"{name}.yaml").write_text(text)
    found = [config.jobs(name) for name in ("low", "high", "own", "smoke")]
    assert found == [5, 5, 1, 2]
    with pytest.raises(UserError, match="jobs must be a whole number"):
        config.jobs("wrong")


@pytest.mark.parametrize(
    ("low", "message"),
    [("extends: smoke", "extends itself"), ("extends: smok", "did you mean 'smoke'")],
)
def test_a_preset_cannot_extend_itself_or_nothing(captioning, low, message):
    (paths.presets_dir() / "low.yaml").write_text(low)
    (paths.presets_dir() / "smoke.yaml").write_text("extends: low\ncommon: {data: world}")
    with pytest.raises(UserError, match=message):
        config.preset_values("smoke", "02_captioning")


@pytest.mark.parametrize(
    ("declared", "text", "value"),
    [(int, "3", 3), (float, "3", 3.0), (float, "1e-3", 1e-3), (str, "3", "3"), (bool, "true", True),
     (list, "[0, 95]", [0, 95])],
)  # fmt: skip
def test_the_command_line_reads_a_value_by_its_type(declared, text, value):
    parsed = config.parse("x", declared, text)
    assert parsed == value and type(parsed) is declared


def test_the_command_line_refuses_what_is_no_yaml():
    with pytest.raises(UserError, match=r"'arms' cannot be read: '\[dsc-95-0' is not YAML"):
        config.parse("arms", list, "[dsc-95-0")


WRONG = [(int, "3.5"), (int, "x"), (float, "x"), (list, "1")]


@pytest.mark.parametrize(("declared", "text"), WRONG)
def test_the_command_line_refuses_the_wrong_type(declared, text):
    with pytest.raises(UserError, match=f"'x' must be of type {declared.__name__}"):
        config.parse("x", declared, text)


@given(st.floats(allow_nan=False))
def test_every_float_is_read_back(value):
    assert config.parse("x", float, repr(value)) == value


def test_two_folders_of_one_name_have_different_runs(captioning, tmp_path, monkeypatch):
    roots = set()
    for parent in ("a", "b"):
        folder = tmp_path / parent / "my photos {1}"
        folder.mkdir(parents=True)
        cfg = config.from_preset("01_world", data=str(folder))
        assert cfg.data == str(folder) and cfg.overrides == {}
        assert cfg.root.name.startswith("smoke-my_photos__1_-")
        roots.add(cfg.root)
    assert len(roots) == 2
    monkeypatch.chdir(folder.parent)
    assert config.from_preset("01_world", data="my photos {1}").root == cfg.root


def test_the_shipped_presets_fit_every_notebook():
    for preset in (path.stem for path in paths.presets_dir().glob("*.yaml")):
        for notebook in config.notebook_stems():
            assert config.from_preset(notebook, preset=preset).preset == preset
