"""Two pairs become one by MixGen's definition, and a hard negative differs from its caption by one word."""

import pytest
import torch
from PIL import Image

from mmbm_core.augment.cross import SWAPS, Captioned, hard_negatives, mix_gen

WORDS = {word: kind for kind, groups in SWAPS.items() for group in groups for word in group}


def _image(height: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)


def test_two_pairs_are_one() -> None:
    first, second = Captioned(_image(8, 12, 0), "a dog runs"), Captioned(_image(8, 12, 1), "a red car")
    mixed = mix_gen(first, second)
    torch.testing.assert_close(mixed.image, (first.image.float() + second.image.float()) / 2)
    assert mixed.text == "a dog runs a red car"


def test_the_second_image_takes_the_size_of_the_first() -> None:
    first, second = Captioned(torch.zeros(3, 8, 12), "a"), Captioned(_image(32, 24, 1), "b")
    wanted = Image.fromarray(second.image.permute(1, 2, 0).numpy()).resize((12, 8), Image.Resampling.BILINEAR)
    pixels = torch.tensor(list(wanted.tobytes())).view(8, 12, 3).permute(2, 0, 1)
    assert (2 * mix_gen(first, second).image - pixels).abs().max() <= 1  # Pillow rounds


def test_words_are_in_one_class() -> None:
    assert len(WORDS) == sum(len(group) for groups in SWAPS.values() for group in groups)


@pytest.mark.parametrize(
    "caption",
    [
        "Two red cups stand left of a blue plate.",
        "three dogs run up a hill",
        "A man in an orange vest, above the WHITE line; four birds are over him",
    ],
)
def test_a_negative_differs_by_one_word_of_its_class(caption: str) -> None:
    kinds = {WORDS[word] for word in caption.lower().replace(",", "").replace(".", "").split() if word in WORDS}
    seen: dict[str, set[str]] = {}
    for seed in range(200):
        negatives = hard_negatives(caption, seed=seed)
        assert set(negatives) == kinds
        assert negatives == hard_negatives(caption, seed=seed)
        for kind, negative in negatives.items():
            pairs = zip(caption.split(), negative.split(), strict=True)
            changed = [pair for pair in pairs if pair[0] != pair[1] and pair[0].lower() not in ("a", "an")]
            ((old, new),) = changed
            old, new = old.strip(",.;"), new.strip(",.;")
            assert WORDS[old.lower()] == WORDS[new.lower()] == kind
            assert old[0].isupper() == new[0].isupper()
            assert new.lower() not in caption.lower().split()
            seen.setdefault(kind, set()).add(negative)
    assert all(len(each) > 1 for kind, each in seen.items() if kind != "direction")


def test_articles_agree() -> None:
    found = {hard_negatives("A red door and an orange wall", seed=seed)["colour"] for seed in range(300)}
    assert "A red door and a blue wall" in found
    assert not any("an blue" in each or "a orange" in each for each in found)
    assert all(each.startswith("A ") for each in found)
    assert hard_negatives("An orange", seed=1)["colour"].startswith("A ")


def test_opposites() -> None:
    assert hard_negatives("a cat left of a dog", seed=3) == {"direction": "a cat right of a dog"}
    assert hard_negatives("from left to right", seed=3) == {}  # the other word is there too
    assert hard_negatives("a leftover pinkish thing", seed=3) == {} == hard_negatives("", seed=1)
