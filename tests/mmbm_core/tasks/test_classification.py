"""Classes: losses and metrics against torch and scikit-learn, and what is refused as out of scope."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss
from torch.nn import functional as F

from mmbm_core.augment import MixAugment, mix_images
from mmbm_core.errors import UsageError
from mmbm_core.fusion.base import Fused
from mmbm_core.metrics import OUT_OF_SCOPE, UNSEEN
from mmbm_core.tasks.base import IGNORED, Representation
from mmbm_core.tasks.classification import ClassificationConfig, ClassificationTask

WIDTH = 6


def config(**given: Any) -> ClassificationConfig:
    return ClassificationConfig.model_validate(
        {"kind": "understanding", "inputs": {"text": "t", "image": "i"}, "label": "l", "labels": ["a", "b", "c"]}
        | given
    )


def make(**given: Any) -> ClassificationTask:
    torch.manual_seed(0)
    return ClassificationTask(config(**given), modalities=("text", "image"), width=WIDTH)


def view(presence: list[list[bool]], *, seed: int = 0) -> Representation:
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(len(presence), WIDTH, generator=generator, requires_grad=True)
    vectors: Any = {m: torch.randn(len(presence), WIDTH, generator=generator) for m in ("text", "image")}
    mask = torch.ones(len(presence), 1, dtype=torch.bool)
    return Representation(Fused(pooled[:, None], mask, pooled), vectors, torch.tensor(presence))


def test_labels_are_learnt_in_natural_order() -> None:
    counts = {"l": {"10": 3, "9": 1, "b": 2, "a": 1, "-1.5": 1, "oos": 4}}
    assert config(labels=()).learn(counts).labels == ("-1.5", "9", "10", "a", "b", "oos")
    assert config(labels=(), out_of_scope="oos").learn(counts).labels == ("-1.5", "9", "10", "a", "b")
    given = config(labels=["b", "a"]).learn({"l": {"a": 1, "b": 1}})
    assert given.labels == ("b", "a")
    with pytest.raises(UsageError, match="no training row has b, z; training rows also have c"):
        config(labels=["a", "b", "z"]).learn({"l": {"a": 1, "c": 1}})
    with pytest.raises(UsageError, match="'l' has 1 classes in the training rows; two are needed"):
        config(labels=(), out_of_scope="oos").learn({"l": {"a": 9, "oos": 9}})
    with pytest.raises(UsageError, match="no training row has l = 'oos', which is to be out of scope"):
        config(labels=(), out_of_scope="oos").learn({"l": {"a": 9, "b": 9}})


def test_targets() -> None:
    task = make(out_of_scope="oos")
    found = task.encode_targets({"l": ["c", None, "oos", "never seen", "a"]}, list("abcde"))
    assert found["label"].tolist() == [2, IGNORED, OUT_OF_SCOPE, UNSEEN, 0]
    numbers = make(labels=["1", "2"]).encode_targets({"l": [2, "1", 3]}, list("abc"))
    assert numbers["label"].tolist() == [1, 0, UNSEEN]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_cross_entropy_of_rows_that_apply(smoothing: float) -> None:
    task = make(label_smoothing=smoothing)
    shown = view([[True, True], [True, False], [False, True], [False, False], [True, True]])
    label = torch.tensor([0, UNSEEN, 2, 1, IGNORED])
    output = task({"inputs": shown}, {"label": label})
    logits = shown.fused.pooled @ task.joint.weight.T + task.joint.bias
    torch.testing.assert_close(output.predictions["logits"], logits)
    expected = F.cross_entropy(logits[[0, 2]], label[[0, 2]], label_smoothing=smoothing)
    torch.testing.assert_close(output.loss, expected)
    nothing = task({"inputs": shown}, {"label": torch.full((5,), IGNORED)}).loss
    nothing.backward()
    assert nothing.item() == 0 and (shown.fused.pooled.grad == 0).all()


def test_own_logits_count_where_their_modality_is() -> None:
    task = make(unimodal_logits=True)
    shown = view([[True, True], [True, False], [False, False]])
    output = task({"inputs": shown}, {"label": torch.tensor([0, 1, 2])})
    joint = shown.fused.pooled @ task.joint.weight.T + task.joint.bias
    own: Any = {m: shown.vectors[m] @ task.own[m].weight.T + task.own[m].bias for m in ("text", "image")}  # type: ignore[index]
    expected = [joint[0] + own["text"][0] + own["image"][0], joint[1] + own["text"][1], joint[2]]
    torch.testing.assert_close(output.predictions["logits"], torch.stack(expected).detach())
    losses = [F.cross_entropy(torch.stack(expected[:2]), torch.tensor([0, 1]))]
    losses += [
        F.cross_entropy(own["text"][:2], torch.tensor([0, 1])),
        F.cross_entropy(own["image"][:1], torch.tensor([0])),
    ]
    torch.testing.assert_close(output.loss, sum(losses))
    scores = task.own_scores(output, {"label": torch.tensor([0, 1, UNSEEN])})
    for name in ("text", "image"):
        right = F.softmax(own[name], -1)[[0, 1], [0, 1]]
        torch.testing.assert_close(scores[name], right.detach())  # type: ignore[index]


def test_rows_out_of_scope_are_taught_to_be_flat() -> None:
    task = make(out_of_scope="oos")
    shown = view([[True, True]] * 4)
    label = torch.tensor([0, OUT_OF_SCOPE, OUT_OF_SCOPE, 1])
    loss = task({"inputs": shown}, {"label": label}).loss
    logits = shown.fused.pooled @ task.joint.weight.T + task.joint.bias
    flat = torch.full((2, 3), 1 / 3)
    in_scope = F.cross_entropy(logits[[0, 3]], label[[0, 3]])
    torch.testing.assert_close(loss, in_scope + F.cross_entropy(logits[1:3], flat, reduction="sum") / 4)


def rows(count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are somewhat right; every fifth row is out of scope and of small logits."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, count)
    logits = rng.normal(0, 1.5, (count, 3)) + 2.0 * np.eye(3)[label]
    label[::5] = OUT_OF_SCOPE
    logits[::5] *= 0.5
    return logits.astype(np.float32), label


def test_metrics_are_those_of_scikit_learn() -> None:
    logits, label = rows(200)
    label = np.where(label < 0, 0, label)
    label[3], label[8] = UNSEEN, IGNORED
    task = make()
    task.temperature.fill_(1.6)
    found = task.score({"logits": logits}, {"label": label})
    counted = label != IGNORED
    seen = label >= 0
    predicted = logits.argmax(1)
    assert found["accuracy"] == pytest.approx(accuracy_score(label[counted], predicted[counted]))
    assert found["nll"] == pytest.approx(
        log_loss(label[seen], torch.softmax(torch.from_numpy(logits[seen]).double() / 1.6, 1).numpy()), abs=1e-5
    )
    plain = make().score({"logits": logits[seen]}, {"label": label[seen]})
    assert plain["macro_f1"] == pytest.approx(f1_score(label[seen], predicted[seen], average="macro"))
    assert {"accuracy", "macro_f1", "ece", "nll"} <= set(found)


def test_the_threshold_is_chosen_on_validation_rows_and_holds_for_both_figures() -> None:
    val_logits, val_label = rows(300)
    logits, label = rows(300, seed=1)
    label[1] = UNSEEN
    task = make(out_of_scope="oos", keep=0.7)
    task.calibrate({"logits": val_logits}, {"label": val_label})
    threshold, temperature = task.threshold.item(), task.temperature.item()

    def figures(logits: np.ndarray, label: np.ndarray, threshold: float) -> tuple[float, float]:
        scaled = torch.from_numpy(logits).double() / temperature
        refused = torch.logsumexp(scaled, 1).numpy() < threshold
        inside = label != OUT_OF_SCOPE
        right = (scaled.argmax(1).numpy() == label) & ~refused  # a refused row in scope is wrong
        return right[inside].mean(), refused[~inside].mean()

    energies = torch.logsumexp(torch.from_numpy(val_logits).double() / temperature, 1).numpy()
    every = [figures(val_logits, val_label, t) for t in [*energies, energies.max() + 1]]
    most = max(recall for accuracy, recall in every if accuracy >= 0.7 * max(accuracy for accuracy, _ in every))
    accuracy, recall = figures(val_logits, val_label, threshold)
    assert recall == pytest.approx(most) and accuracy >= 0.7 * max(accuracy for accuracy, _ in every)
    found = task.score({"logits": logits}, {"label": label})
    assert (found["accuracy"], found["oos_recall"]) == pytest.approx(figures(logits, label, threshold))
    inside = label != OUT_OF_SCOPE
    assert found["accuracy_before_refusal"] == pytest.approx((logits.argmax(1) == label)[inside].mean())
    assert found["accuracy"] < found["accuracy_before_refusal"] and found["oos_recall"] > 0.2


def test_the_temperature_does_not_change_who_is_right() -> None:
    logits, label = rows(300)
    label = np.where(label < 0, 0, label)
    task = make()
    before = task.score({"logits": logits * 4}, {"label": label})
    task.calibrate({"logits": logits * 4}, {"label": label})
    after = task.score({"logits": logits * 4}, {"label": label})
    assert after["accuracy"] == before["accuracy"]
    assert after["nll"] < before["nll"] and after["ece"] < before["ece"]
    probabilities = task.probabilities(torch.from_numpy(logits * 4))
    torch.testing.assert_close(probabilities, torch.softmax(torch.from_numpy(logits * 4) / task.temperature, 1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_mixed_rows_is_that_of_their_shares(smoothing: float) -> None:
    """MixUp's loss (1710.09412): the two classes' losses, by their shares."""
    task = make(inputs={"image": "i"}, mix={"cutmix": 1.0}, label_smoothing=smoothing).eval()
    label = torch.tensor([0, 1, 2, IGNORED, 2, OUT_OF_SCOPE, 1, 0])
    images, rows = torch.rand(7, 3, 8, 8) * 255, torch.tensor([0, 1, 2, 3, 4, 5, 7])
    torch.manual_seed(3)
    mixed, targets = task.mix(images, rows, {"label": label})
    torch.manual_seed(3)
    seed = int(torch.randint(1 << 62, ()))
    known = label[rows] >= 0
    mixture = mix_images(images, MixAugment(cutmix=1.0), mixable=known, seed=seed)
    assert torch.equal(mixed, mixture.images) and torch.equal(mixed[~known], images[~known])
    given = view([[False, True]] * 8)
    output = task({"inputs": given}, targets)
    logits, other = output.predictions["logits"], label.clone()
    other[rows] = label[rows][mixture.partners]
    share = torch.ones(8)
    share[rows] = mixture.shares
    own, partner = (
        F.cross_entropy(logits, each.clamp(min=0), reduction="none", label_smoothing=smoothing)
        for each in (label, other)
    )
    wanted = (share * own + (1 - share) * partner)[label >= 0].mean()
    torch.testing.assert_close(output.loss.detach(), wanted)
    assert (share < 1).any()


def test_only_images_alone_are_mixed() -> None:
    with pytest.raises(ValueError, match="mix blends images and their classes, but inputs are text, image"):
        config(mix={"mixup": 0.2})
    with pytest.raises(ValueError, match="inputs are text:"):
        config(inputs={"text": "t"}, mix={"mixup": 0.2})
