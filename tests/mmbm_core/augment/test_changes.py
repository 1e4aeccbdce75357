"""What changes a label is listed once, under the name of a field."""

from collections import Counter

from mmbm_core.augment import AudioAugment, ImageAugment, TextAugment
from mmbm_core.augment.changes import ASPECTS, CHANGES, changes_of

CONFIGS = (AudioAugment, ImageAugment, TextAugment)


def test_each_is_a_field_of_one_config() -> None:
    fields = Counter(field for config in CONFIGS for field in config.model_fields)
    assert all(fields[field] == 1 for field in CHANGES)
    assert {aspect for aspects in CHANGES.values() for aspect in aspects} == set(ASPECTS)


def test_only_what_is_on_changes_anything() -> None:
    assert all(changes_of(config()) == {} for config in CONFIGS)
    assert changes_of(ImageAugment(flip=True, crop_px=3, hue=0.1)) == {"flip": ("orientation",), "hue": ("colour",)}
    assert changes_of(AudioAugment(speed=0.1, gain_db=3)) == {"speed": ("tempo", "pitch")}
    assert changes_of(TextAugment(swap=0.1, typos=0.1)) == {"swap": ("word order",)}
