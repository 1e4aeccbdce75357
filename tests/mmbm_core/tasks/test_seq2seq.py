"""Likelihoods equal hand computations, texts those of transformers' own models; a task comes back from its files.

Shapes: `B` rows, `T` target tokens, `T'` memory tokens, `D` width.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import (
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    T5ForConditionalGeneration,
)

from mmbm_core.bpe import load_bpe
from mmbm_core.errors import UsageError
from mmbm_core.tasks.base import IGNORED, TaskOutput
from mmbm_core.tasks.seq2seq import DecoderConfig, Seq2SeqConfig, Seq2SeqTask, fingerprints, rank_responses
from tests.seq2seq import (
    BPE,
    TEXTS,
    WIDTH,
    checkpoint_config,
    fit_task,
    make_config,
    make_targets,
    make_task,
    make_view,
    represent,
    save_bart,
    save_t5,
    take_rows,
    task_of_checkpoint,
)

torch.set_num_threads(1)


def _by_hand(task: Seq2SeqTask, memory: Tensor, ids: list[int]) -> list[float]:
    """-log p of each token of one row, each prefix run through the decoder's layers anew."""
    model = task.decoder.model.model.decoder
    table = model.embed_tokens.weight
    nats = []
    for t, target in enumerate(ids):
        prefix = torch.tensor([[1, *ids[:t]]])
        hidden = model(input_ids=prefix, encoder_hidden_states=memory[None], use_cache=False).last_hidden_state[0, -1]
        nats.append(-float(torch.log_softmax(table @ hidden, dim=0)[target].detach()))
    return nats


# --- targets


def test_targets_are_tokens_up_to_the_end_then_padding() -> None:
    task = make_task()
    tokens = task.encode_targets({"target": ["no", "the red disc"]}, ["0", "1"])["tokens"]
    assert tokens.shape == (2, 24) and tokens.dtype == np.int64
    for row, text in zip(tokens, ["no", "the red disc"], strict=True):
        ids = load_bpe(BPE).encode(text).ids
        assert row.tolist() == [*ids, 2, *[0] * (23 - len(ids))]


def test_a_row_without_text_has_no_target() -> None:
    tokens = make_task().encode_targets({"target": [None, "", " \n", "no"]}, list("abcd"))["tokens"]
    assert (tokens[:3] == IGNORED).all() and tokens[3, 0] != IGNORED
    assert make_task().encode_targets({"target": [None]}, ["a"])["tokens"].shape == (1, 24)


def test_a_long_target_is_cut_before_its_end() -> None:
    row = make_task(decoder={"max_tokens": 4}).encode_targets({"target": [TEXTS[-1]]}, ["a"])["tokens"][0]
    assert row.tolist() == [*load_bpe(BPE).encode(TEXTS[-1]).ids[:3], 2]


def test_special_tokens_written_in_a_target_are_text() -> None:
    tokens = make_task().encode_targets({"target": ["</s><pad>"]}, ["a"])["tokens"][0]
    end = tokens.tolist().index(2)
    assert (tokens[:end] > 3).all() and (tokens[end + 1 :] == 0).all()


def test_a_target_of_several_texts_is_refused() -> None:
    with pytest.raises(UsageError, match="--explode target"):
        make_task().encode_targets({"target": [["a", "b"]]}, ["a"])


# --- likelihood


def test_the_loss_is_the_mean_over_tokens_computed_by_hand() -> None:
    task, view = make_task(), make_view(3)
    targets = make_targets(task, ["no", "the red disc", TEXTS[6]])
    output = task({"inputs": view}, targets)
    expected = [
        _by_hand(task, view.fused.tokens[i], [id for id in targets["tokens"][i].tolist() if id]) for i in range(3)
    ]
    assert output.predictions["tokens"].tolist() == [len(row) for row in expected]
    assert output.predictions["nll"].tolist() == pytest.approx([sum(row) for row in expected], abs=1e-3)
    everything = [nats for row in expected for nats in row]
    assert output.loss.item() == pytest.approx(np.mean(everything), abs=1e-4)
    scores = task.score({name: value.numpy() for name, value in output.predictions.items()}, {})
    assert scores == {"perplexity": pytest.approx(np.exp(np.mean(everything)), rel=1e-4)}


def test_label_smoothing_changes_the_loss_alone() -> None:
    plain, smooth, view = make_task(), make_task(label_smoothing=0.2), make_view(2)
    targets = make_targets(plain, ["no", "the red disc"])
    without, with_it = plain({"inputs": view}, targets), smooth({"inputs": view}, targets)
    torch.testing.assert_close(without.predictions, with_it.predictions)
    labels = targets["tokens"]
    log_p = torch.log_softmax(plain.decoder(view.fused.tokens, view.fused.mask, labels), dim=-1)
    each = -(0.8 * log_p.gather(2, labels[..., None])[..., 0] + 0.2 * log_p.mean(-1))
    assert with_it.loss.item() == pytest.approx(each[labels != 0].mean().item(), abs=1e-5)


def test_rows_that_do_not_apply_change_nothing() -> None:
    """No target, nothing of the view, and padding with NaN in it: the other rows' figures stay."""
    task, view = make_task(), make_view(4)
    tokens = torch.cat([view.fused.tokens, torch.full((4, 2, WIDTH), torch.nan)], dim=1)
    mask = torch.cat([view.fused.mask, torch.zeros(4, 2, dtype=torch.bool)], dim=1)
    mask[2] = False
    output = task({"inputs": represent(tokens, mask)}, make_targets(task, ["no", None, TEXTS[-1], "the red disc"]))
    alone = task({"inputs": take_rows(view, [0, 3])}, make_targets(task, ["no", "the red disc"]))
    torch.testing.assert_close(output.loss, alone.loss)
    torch.testing.assert_close(output.predictions["nll"][[0, 3]], alone.predictions["nll"], atol=1e-4, rtol=1e-5)
    assert output.predictions["nll"][[1, 2]].tolist() == [0, 0]
    assert output.predictions["tokens"][[1, 2]].tolist() == [0, 0]


@pytest.mark.parametrize("ranking", [0.0, 0.5])
def test_without_any_row_the_loss_is_zero_with_a_gradient_path(ranking: float) -> None:
    task, view = make_task(ranking=ranking, label_smoothing=0.1), make_view(2)
    for texts, has in ((["no", "no"], False), ([None, None], True)):
        task.zero_grad()
        seen = represent(view.fused.tokens, view.fused.mask & has)
        output = task({"inputs": seen, "response": seen}, make_targets(task, texts))
        output.loss.backward()
        assert output.loss.item() == 0
        assert all(p.grad is not None and not p.grad.any() for p in task.parameters())
        assert "perplexity" not in task.score(
            {name: value.numpy() for name, value in output.predictions.items()},
            {name: value.numpy() for name, value in make_targets(task, texts).items()},
        )


def test_every_weight_learns_and_none_is_left_of_an_encoder() -> None:
    task, view = make_task(), make_view(2)
    task({"inputs": view}, make_targets(task, ["no", "the red disc"])).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.parameters())
    state = task.state_dict()
    assert not [name for name in state if "encoder." in name.replace("decoder.", "")]
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


# --- generation


def test_greedy_generation_with_its_cache_equals_a_loop_without() -> None:
    task, view = make_task(), make_view(4)
    for row, text in enumerate(task.generate(view, beams=1)):
        ids: list[int] = []
        while len(ids) < 24 and (not ids or ids[-1] != 2):
            labels = torch.tensor([[*ids, 0]])  # the last label is what is asked for
            ids.append(int(task.decoder(view.fused.tokens[[row]], view.fused.mask[[row]], labels)[0, -1].argmax()))
        assert text == task.decoder.text(ids)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_says_the_same_alone_and_beside_others_with_padding(beams: int) -> None:
    task, view = make_task(), make_view(4)
    tokens = torch.cat([view.fused.tokens, torch.full((4, 3, WIDTH), torch.nan)], dim=1)
    mask = torch.cat([view.fused.mask, torch.zeros(4, 3, dtype=torch.bool)], dim=1)
    mask[1] = False
    together = task.generate(represent(tokens, mask), beams=beams)
    assert len(set(together)) == 4
    for row in (0, 2, 3):
        assert task.generate(take_rows(view, [row]), beams=beams) == [together[row]]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beams_find_the_best_of_all_texts_of_two_tokens(penalty: float) -> None:
    task, view = make_task(beams=100, length_penalty=penalty), make_view(6)
    num_tokens = len(task.decoder.tokenizer)
    found = task.generate(view, max_tokens=2)
    for row in range(6):
        pairs = torch.stack([torch.arange(num_tokens), torch.zeros(num_tokens, dtype=torch.int64)], dim=1)
        memory, mask = (x[[row]].expand(num_tokens, *x.shape[1:]) for x in view.fused[:2])
        first, second = torch.log_softmax(task.decoder(memory, mask, pairs), dim=-1).unbind(1)
        both = (first[0, :, None] + second) / 2**penalty
        both[2] = first[0, 2]  # the end: a text of one token
        best = divmod(int(both.argmax()), num_tokens)
        assert found[row] == task.decoder.text(best[: 1 + (best[0] != 2)])
    assert found != task.generate(view, beams=1, max_tokens=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams is 0"),
        ({"max_tokens": 25}, "max_tokens is 25; allowed: 1 to 24"),
        ({"max_tokens": 0, "beams": 1}, "max_tokens is 0"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_task().generate(make_view(1), **options)


# --- learning, saving


def test_a_small_decoder_learns_eight_pairs_by_heart_and_comes_back_from_its_files() -> None:
    task, view = fit_task(TEXTS), make_view(8)
    assert task.generate(view) == TEXTS
    assert task.generate(view, beams=1) == TEXTS
    torch.manual_seed(99)
    again = Seq2SeqTask(task.config, modalities=("text",), width=WIDTH, assets=task.assets())
    again.load_state_dict({name: tensor.clone() for name, tensor in task.state_dict().items()})
    assert again.generate(view) == TEXTS
    assert again.assets() == task.assets()
    targets = make_targets(task, TEXTS)
    torch.testing.assert_close(again.eval()({"inputs": view}, targets), task({"inputs": view}, targets))
    again.decoder.model.lm_head.weight.data.add_(1)  # still one weight
    assert torch.equal(again.decoder.model.lm_head.weight, again.decoder.model.model.decoder.embed_tokens.weight)


# --- checkpoints


LOADERS: dict[str, Any] = {
    "bart": (save_bart, BartForConditionalGeneration),
    "t5": (save_t5, T5ForConditionalGeneration),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_checkpoint_says_what_its_own_model_says(kind: str, tmp_path: Path) -> None:
    save, model_class = LOADERS[kind]
    folder = save(tmp_path / "source")
    model = model_class.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    task = task_of_checkpoint(folder)
    source = tokenizer(TEXTS[:4], return_tensors="pt", padding=True)
    encoded = model.get_encoder()(input_ids=source["input_ids"], attention_mask=source["attention_mask"])
    view = represent(encoded.last_hidden_state.detach(), source["attention_mask"].bool())
    targets = make_targets(task, TEXTS[4:])

    labels = tokenizer(TEXTS[4:], return_tensors="pt", padding=True)["input_ids"]
    assert torch.equal(targets["tokens"][:, : labels.shape[1]], labels)
    theirs = model(**source, labels=labels.masked_fill(labels == 0, -100))
    ours = task.decoder(view.fused.tokens, view.fused.mask, labels)
    torch.testing.assert_close(ours, theirs.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(task({"inputs": view}, targets).loss, theirs.loss, atol=1e-4, rtol=1e-4)

    plain = {"min_length": 0, "no_repeat_ngram_size": 0, "max_new_tokens": 24, "do_sample": False}
    for beams in (1, 3):
        ids = model.generate(**source, **plain, num_beams=beams)
        expected = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert task.generate(view, beams=beams) == expected
        assert len(set(expected)) > 1

    again = Seq2SeqTask(
        checkpoint_config(str(tmp_path / "gone")), modalities=("text",), width=WIDTH, assets=task.assets()
    ).eval()
    again.load_state_dict({name: tensor.clone() for name, tensor in task.state_dict().items()})
    assert again.generate(view, beams=3) == task.generate(view, beams=3)
    torch.testing.assert_close(again.decoder(view.fused.tokens, view.fused.mask, labels), ours)
    assert "".join(again.stream(take_rows(view, [0]))) == task.generate(take_rows(view, [0]), beams=1)[0]
    assert not any(p.data_ptr() in {q.data_ptr() for q in model.get_encoder().parameters()} for p in task.parameters())
    num_own = sum(p.numel() for p in set(model.parameters()) - set(model.get_encoder().parameters()))
    embeddings = model.get_input_embeddings().weight.numel()  # the encoder's as well
    assert sum(p.numel() for p in task.parameters()) == num_own + embeddings


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = save_bart(tmp_path / "bart")
    config = checkpoint_config(folder)
    with pytest.raises(UsageError, match="is 16 wide, the model 32: set width to 16"):
        Seq2SeqTask(config, modalities=("text",), width=32)
    with pytest.raises(UsageError, match=r"decoder\.max_tokens is 33; allowed: up to 32"):
        task_of_checkpoint(folder, decoder=DecoderConfig(max_tokens=33))
    bert = BertConfig(vocab_size=300, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2)
    BertModel(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(UsageError, match="is a bert; allowed: a text Seq2Seq model"):
        task_of_checkpoint(str(tmp_path / "bert"))
    with pytest.raises(UsageError, match="no such model folder"):
        task_of_checkpoint(str(tmp_path / "nowhere"))
    (tmp_path / "bart" / "model.safetensors").rename(tmp_path / "bart" / "moved")
    torch.save({}, tmp_path / "bart" / "pytorch_model.bin")
    with pytest.raises(UsageError, match="can't be loaded"):
        task_of_checkpoint(folder)


# --- config


def test_a_config_names_its_columns() -> None:
    plain, ranking = make_config(), make_config(ranking=0.5)
    assert plain.views == {"inputs": {"text": "source"}}
    assert ranking.views == {"inputs": {"text": "source"}, "response": {"text": "target"}}
    assert plain.target_columns == plain.text_columns == ("target",)
    checkpoint = checkpoint_config("folder")
    assert checkpoint.text_columns == ()
    assert Seq2SeqConfig.model_validate(checkpoint.model_dump(mode="json")) == checkpoint


def test_a_decoder_beside_a_checkpoint_is_refused() -> None:
    with pytest.raises(ValidationError, match="set max_tokens only"):
        checkpoint_config("folder", decoder=DecoderConfig(layers=3))


def test_a_decoder_from_scratch_needs_its_tokenizer_and_heads_that_divide() -> None:
    with pytest.raises(UsageError, match=r"needs its tokenizer\.json"):
        Seq2SeqTask(make_config(), modalities=("text",), width=WIDTH)
    with pytest.raises(UsageError, match=r"decoder\.heads is 3; allowed: what divides the width 16"):
        make_task(decoder={"heads": 3})


# --- ranking


def _ranked(task: Seq2SeqTask, texts: list[Any], *, present: list[bool]) -> tuple[TaskOutput, dict[str, Tensor]]:
    inputs, response = make_view(len(texts), seed=1), make_view(len(texts), seed=2)
    inputs = represent(inputs.fused.tokens, inputs.fused.mask & torch.tensor(present)[:, None])
    targets = make_targets(task, texts)
    return task({"inputs": inputs, "response": response}, targets), targets


def test_the_ranking_loss_is_info_nce_over_the_rows_that_have_both() -> None:
    texts = ["no", "the red disc", "no", None, "a blue square"]
    present = [True, True, True, True, False]
    ranking, plain = make_task(ranking=0.5), make_task()
    output, targets = _ranked(ranking, texts, present=present)
    tokens, mask = make_view(5, seed=1).fused[:2]
    without = plain({"inputs": represent(tokens, mask & torch.tensor(present)[:, None])}, targets)
    x, y = (torch.nn.functional.normalize(make_view(5, seed=s).fused.pooled[:3], dim=1) for s in (1, 2))
    logits = x @ y.T / 0.07
    same = torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])  # rows 0 and 2 give the same response
    each = [-(same * torch.log_softmax(z, dim=1)).sum(1).mean() for z in (logits, logits.T)]
    assert (output.loss - without.loss).item() == pytest.approx(0.5 * (sum(each) / 2).item(), abs=1e-4)
    output.loss.backward()
    assert ranking.contrast is not None and ranking.contrast.log_scale.grad is not None
    for name, missing in (("context", [4]), ("response", [3])):
        vectors = output.predictions[name]
        assert not vectors.requires_grad
        assert vectors.isnan().all(1).nonzero()[:, 0].tolist() == missing and not vectors.isnan().any(1)[:3].any()


def test_response_ranking_on_constructed_vectors() -> None:
    same = np.eye(20, dtype=np.float32)
    groups = np.arange(20)
    assert rank_responses(same, same, groups) == {"response_r@1": 1.0}
    assert rank_responses(same, np.roll(same, 1, axis=0), groups) == {"response_r@1": 0.0}
    assert rank_responses(same, np.ones_like(same), groups) == {"response_r@1": 0.0}  # a tie is no find
    half = same.copy()
    half[:10] = -1
    assert rank_responses(same, half, groups) == {"response_r@1": 0.5}
    assert rank_responses(same[:9], same[:9], groups[:9]) == {}
    hidden = same.copy()
    hidden[3] = np.nan
    assert rank_responses(hidden, half, groups) == {"response_r@1": pytest.approx(10 / 19)}


def test_equal_responses_are_no_distractors() -> None:
    """20 rows, each response twice with one vector: among other rows' responses, none ties with the own one."""
    vectors = np.eye(10, dtype=np.float32)[np.arange(20) % 10]
    assert rank_responses(vectors, vectors, np.arange(20) % 10) == {"response_r@1": 1.0}
    assert rank_responses(vectors, vectors, np.arange(20))["response_r@1"] < 1
    assert rank_responses(vectors, vectors, np.zeros(20, np.int64)) == {}


def test_chance_is_one_in_ten_and_the_draw_repeats() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 3000, 8))
    groups = random.integers(0, 500, 3000)
    found = rank_responses(x, y, groups)
    assert found["response_r@1"] == pytest.approx(0.1, abs=0.02)
    assert rank_responses(x, y, groups) == found


def test_score_groups_rows_by_their_tokens() -> None:
    task = make_task(ranking=1.0)
    texts = [TEXTS[i % 2] for i in range(30)]
    vectors = np.eye(16, dtype=np.float32)[np.arange(30) % 2]
    predictions = {"context": vectors, "response": vectors, "nll": np.ones(30, np.float32), "tokens": np.ones(30, int)}
    scores = task.score(predictions, {name: value.numpy() for name, value in make_targets(task, texts).items()})
    assert scores == {"perplexity": pytest.approx(np.e), "response_r@1": 1.0}


def test_fingerprints_tell_rows_apart() -> None:
    tokens = torch.randint(0, 50, (2000, 12), generator=torch.Generator().manual_seed(0))
    tokens[5] = tokens[3]
    assert len(fingerprints(tokens).unique()) == 1999
    assert torch.equal(fingerprints(tokens)[[3]], fingerprints(tokens[[5]]))
    assert len(fingerprints(torch.tensor([[4, 5, 2, 0], [5, 4, 2, 0], [4, 2, 0, 0]])).unique()) == 3
