"""Canonical correlation analysis, against scikit-learn and by its definition."""

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import Ridge

from mmbm_core.canonical import Moments, canonical_maps


def data(seed: int = 0, rows: int = 400) -> dict[str, torch.Tensor]:
    """Three modalities that share two factors under noise."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(rows, 2))
    made = {}
    for name, width in (("text", 5), ("image", 7), ("audio", 4)):
        mixed = shared @ rng.normal(size=(2, width)) + rng.normal(size=(rows, width)) + rng.normal(size=width)
        made[name] = torch.from_numpy(mixed).float()
    return made


def moments(given: dict[str, torch.Tensor], *, batch: int = 64) -> Moments:
    found = Moments({m: v.shape[1] for m, v in given.items()})  # type: ignore[misc]
    rows = len(next(iter(given.values())))
    for start in range(0, rows, batch):
        part = {m: v[start : start + batch] for m, v in given.items()}
        found.add(part, {m: torch.ones(len(v), dtype=torch.bool) for m, v in part.items()})  # type: ignore[arg-type]
    return found


def outputs(given: dict[str, torch.Tensor], **options: float) -> dict[str, np.ndarray]:
    maps = canonical_maps(moments(given), **({"joining_ridge": 0.5} | options))  # type: ignore[arg-type]
    return {m: (v @ maps[m][0].T + maps[m][1]).numpy() for m, v in given.items()}  # type: ignore[index]


def test_two_modalities_have_the_correlations_of_scikit_learn() -> None:
    given = {m: v for m, v in data().items() if m != "audio"}
    found = outputs(given, width=3, ridge=1e-9)
    x, y = CCA(n_components=3, max_iter=5000, tol=1e-10).fit_transform(given["text"], given["image"])
    for k in range(3):
        expected = np.corrcoef(x[:, k], y[:, k])[0, 1]
        assert np.corrcoef(found["text"][:, k], found["image"][:, k])[0, 1] == pytest.approx(expected, abs=1e-3)
        scaled = found["text"][:, k].std() / found["text"][:, 0].std()
        first = np.corrcoef(x[:, 0], y[:, 0])[0, 1]
        assert scaled == pytest.approx(expected / first, abs=1e-3)  # directions count as much as they correlate


def test_outputs_are_centred_and_of_unit_power() -> None:
    for found in outputs(data(), width=2, ridge=0.5).values():
        np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
        assert (found**2).mean() == pytest.approx(1, rel=1e-3)


def test_three_modalities_meet_in_what_they_share() -> None:
    found = outputs(data(), width=2, ridge=0.1)
    for a, b in (("text", "image"), ("text", "audio"), ("image", "audio")):
        assert np.corrcoef(found[a][:, 0], found[b][:, 0])[0, 1] > 0.6


def test_a_third_joins_the_first_two_and_leaves_them_as_they_are() -> None:
    made = data()
    given = {m: made[m] for m in ("image", "audio", "text")}
    alone = outputs({m: given[m] for m in ("image", "audio")}, width=2, ridge=0.1)
    found = outputs(given, width=2, ridge=0.1, joining_ridge=0.3)
    for modality, expected in alone.items():
        np.testing.assert_allclose(found[modality], expected, atol=1e-4)
    target = (alone["image"] + alone["audio"]) / 2
    scale = given["text"].std(0, correction=0).numpy()
    regression = Ridge(alpha=0.3 * len(target)).fit(given["text"].numpy() / scale, target)
    expected = regression.predict(given["text"].numpy() / scale)
    expected = expected / np.sqrt((expected**2).mean())
    np.testing.assert_allclose(found["text"], expected, atol=1e-3)


def test_rows_that_lack_a_modality_do_not_count_for_it() -> None:
    given = data()
    present = {m: torch.ones(400, dtype=torch.bool) for m in given}
    present["audio"][100:] = False
    spoiled = given | {"audio": torch.where(present["audio"][:, None], given["audio"], 1e6)}
    some = Moments({m: v.shape[1] for m, v in given.items()})  # type: ignore[misc]
    some.add(spoiled, present)  # type: ignore[arg-type]
    text, audio = given["text"][:100].double(), given["audio"][:100].double()
    expected = (text - text.mean(0)).T @ (audio - audio.mean(0)) / 100
    torch.testing.assert_close(some.covariance("text", "audio"), expected)
    torch.testing.assert_close(some.mean("audio"), audio.mean(0))
    torch.testing.assert_close(some.covariance("text", "image"), moments(given).covariance("text", "image"))


def test_a_width_beyond_the_directions_is_filled_with_zeros() -> None:
    given = {m: v for m, v in data().items() if m != "audio"}
    maps = canonical_maps(moments(given), width=20, ridge=1.0, joining_ridge=1.0)
    for weight, bias in maps.values():
        assert weight.shape[0] == bias.shape[0] == 20 and torch.isfinite(weight).all()
        assert (weight[12:] == 0).all() and (weight[0] != 0).any()
