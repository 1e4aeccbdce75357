"""What a smaller model learns from the original."""

import torch
from scipy.special import rel_entr, softmax

from mmbm_core.compress.distill import divergence, guided_outputs, output_loss, token_loss
from mmbm_core.model import Batch, Encoded, Values
from mmbm_core.tasks.base import TaskOutput
from tests.bundles import make_model, subset_rows


def test_divergence_is_kl_at_a_temperature() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    for temperature in (1.0, 3.0):
        p, q = (softmax(x.double().numpy() / temperature, axis=1) for x in (teacher, student))
        expected = rel_entr(p, q).sum(1).mean() * temperature**2
        assert abs(divergence(student, teacher, temperature=temperature).item() - expected) < 1e-5
    assert divergence(teacher, teacher, temperature=2.0).abs() < 1e-6


def test_only_what_both_say_is_compared() -> None:
    loss = torch.zeros((), requires_grad=True)
    one = TaskOutput(loss, {"nll": torch.zeros(2)})
    assert output_loss(one, one).item() == 0
    logits = torch.randn(2, 3, requires_grad=True)
    student = TaskOutput(loss, {"logits": logits, "logits of text": logits})
    teacher = TaskOutput(loss, {"logits": torch.randn(2, 3), "logits of text": torch.randn(2, 3)})
    output_loss(student, teacher).backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0


def test_padding_and_missing_rows_are_not_compared() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    tokens = torch.randn(2, 3, 4)
    theirs = {("text", "a"): Encoded(tokens, mask, torch.tensor([True, False]))}
    noise = torch.randn(2, 3, 4)
    noise[0, :2] = 0  # differs only where nothing real stands
    ours = {("text", "a"): Encoded(tokens + noise, mask, torch.tensor([True, False]))}
    assert float(token_loss(ours, theirs)) == 0
    ours = {("text", "a"): Encoded(torch.zeros(2, 3, 4), mask, torch.tensor([True, False]))}
    assert abs(float(token_loss(ours, theirs)) - 1) < 1e-6


def test_a_model_that_is_the_teacher_has_its_own_loss_alone(text_model: str) -> None:
    model = make_model(text_model, fusion={"kind": "gated"}).eval()
    rows = [row for row in subset_rows() if row["text"] is not None]
    values = {}
    for modality, encoder in model.encoders.items():
        here = [i for i, row in enumerate(rows) if row[modality] is not None]
        items = encoder.prepare(modality, [rows[i][modality] for i in here])  # type: ignore[operator]
        values[modality, modality] = Values(torch.tensor(here), [encoder.collate(modality, items)])  # type: ignore[operator]
    targets = {"seen": {"label": torch.ones(len(rows), dtype=torch.int64)}}
    batch = Batch(ids=[row["id"] for row in rows], values=values, targets=targets)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    own = model(batch)["seen"].loss
    guided = guided_outputs(model, model, batch, generator=generator)["seen"].loss
    torch.testing.assert_close(guided, own, atol=1e-5, rtol=1e-5)
