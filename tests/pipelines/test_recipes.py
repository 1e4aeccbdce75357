"""Recipes: those that ship, and what is said of those that are wrong."""

from pathlib import Path

import pytest
import yaml

from mmbm_core.errors import UsageError
from mmbm_core.synth import SCHEMA
from pipelines.dataset import Wanted
from pipelines.recipe import load_recipe
from pipelines.recipe_file import FOLDER, known_recipes

SYNTHETIC = [name for name in known_recipes() if name.startswith("synth-")]


@pytest.mark.parametrize("name", known_recipes())
def test_a_recipe_that_ships_is_valid_and_says_its_layout(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.parts
    metric = recipe.training.metric
    assert metric is None or metric.partition("/")[0] in recipe.model.tasks
    heading = (FOLDER / f"{name}.yaml").read_text().split("model:")[0]
    assert heading.startswith("# ") and "Layout:" in heading


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_synthetic_recipe_reads_what_synthesize_writes(name: str) -> None:
    recipe = load_recipe(name)
    names = Wanted.of(recipe.model.tasks).names
    assert {column for column in names if not column.startswith("turn.")} <= set(SCHEMA.names)
    if any(column.startswith("turn.") for column in names):
        assert recipe.data.turns and recipe.data.turns.column in SCHEMA.names


def test_there_are_synthetic_recipes_for_each_kind_of_task() -> None:
    kinds = {task.kind for name in SYNTHETIC for task in load_recipe(name).model.tasks.values()}
    assert kinds >= {"align", "recognition", "understanding", "dialogue", "translation"}


def test_settings_replace_what_the_file_says() -> None:
    settings = ["training.epochs=3", "model.fusion={kind: low_rank, rank: 4}", "data.val_fraction=0.25"]
    recipe = load_recipe("synth-xor", settings=settings)
    assert (recipe.training.epochs, recipe.data.val_fraction) == (3, 0.25)
    assert recipe.model.fusion is not None and recipe.model.fusion.model_dump() == {"kind": "low_rank", "rank": 4}


WRONG = """
model:
  encodrs: {}
  encoders:
    text: {model: minilm, trainig: full}
    image: {model: {kind: image_cnn, size: 32, widths: [0, 2]}, training: full, augment: {flp: true}}
    audio: {model: {kind: logmel}, training: full, augment: {speed: 0.1, gain: 3}}
    smell: {model: x}
  width: 4
  fusion: {kind: atention}
  tasks:
    a: {kind: recognition, inputs: {image: image}, lable: shape}
    b: {kind: recogniton, inputs: {image: image}, label: shape}
    c: {kind: align, inputs: {image: image, text: text}, loss: {kind: infonce}}
data: {val_fraction: 2, turns: {colum: x}}
training: {epoch: 3, lr: fast, balancer: {kind: grad_norm, alpa: 1}}
"""
SAID = """\
model.encodrs: unknown key; did you mean encoders?
model.encoders.text.trainig: unknown key; did you mean training?
model.encoders.image.model.size: unknown key; did you mean size_px?
model.encoders.image.model.widths.0 = 0: input should be greater than or equal to 1
model.encoders.image.augment.flp: unknown key; did you mean flip?
model.encoders.audio.model.kind = 'logmel': unknown kind; did you mean log_mel?
model.encoders.audio.augment.gain: unknown key; did you mean gain_db?
model.encoders.smell = 'smell': input should be 'text', 'image' or 'audio'
model.width = 4: input should be greater than or equal to 8
model.fusion.kind = 'atention': unknown kind; did you mean attention?
model.tasks.a.label: field required
model.tasks.a.lable: unknown key; did you mean label?
model.tasks.b.kind = 'recogniton': unknown kind; did you mean recognition?
model.tasks.c.loss.kind = 'infonce': input should be 'info_nce' or 'siglip'
data.val_fraction = 2: input should be less than 1
data.turns.colum: unknown key; did you mean column?
training.epoch: unknown key; did you mean epochs?
training.lr = 'fast': input should be a valid number, unable to parse string as a number
training.balancer.alpa: unknown key; did you mean alpha?"""


def problems_of(content: str, folder: Path) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        load_recipe(str(path))
    heading, *lines = str(caught.value).splitlines()
    assert heading == f"recipe {path}:"
    return [line.strip() for line in lines]


def test_all_that_is_wrong_is_said_at_once_with_what_was_meant(tmp_path: Path) -> None:
    assert sorted(problems_of(WRONG, tmp_path)) == sorted(SAID.splitlines())


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("model", {}, "model.encoders: field required"),
        ("model.fusion", {}, "model.fusion.kind: field required"),
        ("model.width", None, "model: width is missing"),
        ("model.colour", 1, "model.colour: unknown key; known: encoders, width, "),
        ("model.tasks.truth.inputs.audio", "audio", "model: task truth reads audio, which no encoder takes"),
        ("model.encoders.image.augment", {"flip": True}, "augment needs training: full or lora"),
        ("training.metric", "shape/accuracy", "TASK one of truth"),
        ("sets", {"one": {"tasks": ["truht"]}}, "sets name the tasks truht; the model has truth"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_together_are_refused(path: str, value: object, said: str, tmp_path: Path) -> None:
    content = yaml.safe_load((FOLDER / "synth-xor.yaml").read_text())
    *above, last = path.split(".")
    part = content
    for key in above:
        part = part[key]
    part[last] = value
    if path == "sets":
        content.pop("data", None)
    assert said in "\n".join(problems_of(yaml.safe_dump(content), tmp_path))


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("synth-xro", [], "no recipe 'synth-xro': give a YAML file, or one of"),
        ("synth-xor", ["training.epochs"], "write part.key=value"),
        ("synth-xor", ["training.epochs.most=3"], "epochs is a value and has no parts"),
        ("synth-xor", ["training.epoch=3"], "training.epoch: unknown key; did you mean epochs?"),
    ],
)
def test_wrong_names_and_settings_are_refused(name: str, settings: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("?", r"\?")):
        load_recipe(name, settings=settings)


@pytest.mark.parametrize(("content", "said"), [("- a\n", "holds no mapping"), ("a: [", "is no YAML")])
def test_a_file_that_is_no_recipe_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(UsageError, match=said):
        load_recipe(str(tmp_path / "recipe.yaml"))


CAPTIONS = "model.tasks={caption: {kind: captioning, inputs: {image: image}, target: text}}"
MIX = "model.tasks.class.mix={mixup: 0.2}"
OTHER = "model.tasks.other={kind: recognition, inputs: {image: image}, label: x}"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([CAPTIONS], "encoders.image.augment.flip changes orientation, which the targets of task caption may tell: "
         "leave it out, or write depends_on: [colour, words, word order, tempo, pitch] in the task if they never do"),
        ([CAPTIONS, "model.encoders.image.augment={policy: trivial}"], "policy changes orientation and colour, which"),
        (["model.tasks.class.depends_on=[orientation]"], "flip changes orientation, which the targets of task class"),
        (["model.tasks.class.depends_on=[size]"], "input should be 'orientation', 'colour', 'words', 'word order'"),
        (["model.encoders.image.augment={speed: 0.1}"], "encoders.image.augment is for another modality; known: flip"),
        ([MIX, "model.tasks.class.inputs={image: image, text: text}"], "but inputs are image, text: what the others"),
        ([MIX, OTHER],
         "task class mixes images that other reads too, whose targets are not mixed"),
        ([MIX, "model.encoders.image={model: efficientnet-lite0}"],
         "task class mixes images, which needs an encoder of images with training: full or lora"),
    ],
)  # fmt: skip
def test_augmentation_that_labels_do_not_survive_is_refused(settings: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("cifar-recognition", settings=settings)
    assert said in str(caught.value)


PAIR = "{kind: align, inputs: {image: image, text: text}, mix: {mixgen: 0.25}}"
TRAINED = "model.encoders.text={model: minilm, training: lora}"
SMALL = "model.encoders.image={model: {kind: image_cnn}, training: full}"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], "task pair mixes images and texts, which needs an encoder of images and one of texts with training: full "
         "or lora; a frozen one runs once, before training: leave mix out, or train it"),
        ([SMALL], "which needs an encoder of texts with training: full or lora"),
        ([TRAINED], "which needs an encoder of images with training: full or lora"),
        (["model.tasks.pair.inputs={image: image, text: text, audio: audio}"],
         "mix makes one image-text pair of two, but inputs are image, text, audio: what the others hold would belong "
         "to a half of it; leave mix out, or give image and text alone"),
        (["model.tasks.pair.inputs={text: text, audio: audio}"], "but inputs are text, audio"),
        ([SMALL, TRAINED, "model.tasks.meant={kind: understanding, inputs: {text: text}, label: x}"],
         "task pair mixes images and texts that meant reads too, whose targets are not mixed; leave mix out"),
        (["model.tasks.pair.mix={mixgen: 0.75}"], "less than or equal to 0.5"),
        (["model.tasks.pair.mix={mixup: 0.2}"], "mixup: unknown key"),
    ],
)  # fmt: skip
def test_pairs_that_can_not_be_mixed_are_refused(settings: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("synth-align", settings=[f"model.tasks={{pair: {PAIR}}}", *settings])
    assert said in str(caught.value)


def test_pairs_are_mixed_for_encoders_that_are_trained() -> None:
    settings = [f"model.tasks={{pair: {PAIR}}}", SMALL, TRAINED]
    assert load_recipe("synth-align", settings=settings).model.tasks["pair"].mix.mixgen == 0.25  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "settings",
    [
        [CAPTIONS, "model.tasks.caption.depends_on=[colour, words]"],
        [CAPTIONS, "model.encoders.image.augment={crop_px: 4, brightness: 0.2}"],
        ["model.tasks.class.depends_on=[colour]", "model.tasks.class.mix={mixup: 0.2, cutmix: 1.0}"],
    ],
)
def test_what_labels_survive_is_taken(settings: list[str]) -> None:
    assert load_recipe("cifar-recognition", settings=settings).model.encoders["image"].augment is not None
