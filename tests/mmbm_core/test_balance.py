"""Balancers' gradients equal their papers' formulas, worked out plainly on a tiny trunk with heads."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from mmbm_core import balance
from mmbm_core.balance import Balancer, build_balancer, ogm_ge_
from mmbm_core.errors import UsageError

TASKS = ("a", "b", "c")
CONFIGS = {
    "static": balance.StaticConfig(weights={"a": 0.5, "c": 3.0}),
    "uncertainty": balance.UncertaintyConfig(regression=("b",)),
    "grad_norm": balance.GradNormConfig(lr=0.02, alpha=0.7),
    "pcgrad": balance.PcGradConfig(),
}


class Net(nn.Module):
    """Two shared layers, a shared parameter that task a alone uses, one that no task uses, a head for each task."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.trunk = nn.ModuleDict({"first": nn.Linear(3, 4), "last": nn.Linear(4, 4)})
            self.shift = nn.Parameter(torch.randn(4))
            self.unused = nn.Parameter(torch.ones(2))
            self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})
        self.double()

    def shared(self) -> list[nn.Parameter]:
        return [*self.trunk.parameters(), self.shift, self.unused]

    def last(self) -> list[nn.Parameter]:
        return list(self.trunk["last"].parameters())

    def losses(self, step: int = 0, tasks: Sequence[str] = TASKS) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(step)
        x, targets = (torch.randn(8, 3, generator=rng, dtype=torch.float64) for _ in range(2))
        shared = self.trunk["last"](torch.tanh(self.trunk["first"](x))).tanh()
        found = {task: self.heads[task](shared + (self.shift if task == "a" else 0))[:, 0] for task in tasks}
        number = TASKS.index
        return {t: 2 ** number(t) * (y - 2 * targets[:, number(t)]).square().mean() for t, y in found.items()}


def _named_gradients(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: np.array(0.0) if p.grad is None else p.grad.numpy() for name, p in net.named_parameters()}


def _each(tasks: Sequence[str] = TASKS) -> tuple[dict[str, float], dict[str, dict[str, np.ndarray]]]:
    """Losses, and gradients by task and parameter, from one fresh network a task."""
    values, gradients = {}, {}
    for task in tasks:
        net = Net()
        loss = net.losses()[task]
        loss.backward()
        values[task], gradients[task] = loss.item(), _named_gradients(net)
    return values, gradients


def _balancer(kind: str) -> Balancer:
    return build_balancer(CONFIGS[kind], tasks=TASKS).double()  # type: ignore[arg-type]


def _check(net: nn.Module, expected: Mapping[str, np.ndarray]) -> None:
    for name, found in _named_gradients(net).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-6, atol=1e-12, err_msg=name)


def _weighted(gradients: dict[str, dict[str, np.ndarray]], weights: dict[str, float]) -> dict[str, np.ndarray]:
    names = [name for name, _ in Net().named_parameters()]
    return {name: sum((weights[t] * each[name] for t, each in gradients.items()), np.array(0.0)) for name in names}


@pytest.mark.parametrize("tasks", [TASKS, ("c", "a"), ("b",)])
def test_static_is_the_weighted_sum(tasks: tuple[str, ...]) -> None:
    net, weights = Net(), {"a": 0.5, "b": 1.0, "c": 3.0}
    total = _balancer("static").backward(net.losses(tasks=tasks), net.shared())
    values, gradients = _each(tasks)
    assert total.item() == pytest.approx(sum(weights[t] * values[t] for t in tasks))
    assert not total.requires_grad
    _check(net, _weighted(gradients, weights))


@pytest.mark.parametrize("tasks", [TASKS, ("c", "b")])
def test_uncertainty_weighs_by_learned_variances(tasks: tuple[str, ...]) -> None:
    net, balancer = Net(), _balancer("uncertainty")
    s, c = {"a": 0.3, "b": -0.7, "c": 1.1}, {"a": 1.0, "b": 0.5, "c": 1.0}
    with torch.no_grad():
        balancer.log_variance.copy_(torch.tensor(list(s.values()), dtype=torch.float64))  # type: ignore[operator]
    total = balancer.backward(net.losses(tasks=tasks), net.shared())
    values, gradients = _each(tasks)
    weights = {t: c[t] * math.exp(-s[t]) for t in TASKS}
    assert total.item() == pytest.approx(sum(weights[t] * values[t] + s[t] / 2 for t in tasks), rel=1e-6)
    _check(net, _weighted(gradients, weights))
    slopes = [0.5 - weights[t] * values[t] if t in tasks else 0.0 for t in TASKS]
    np.testing.assert_allclose(dict(balancer.named_parameters())["log_variance"].grad, slopes, rtol=1e-6)


def _grad_norm_step(net: Net, losses: dict[str, Tensor], weights: dict[str, Tensor], first: dict[str, float]) -> None:
    """Algorithm 1 to the letter: the weights' gradients by a second backward pass, network gradients into `.grad`."""
    lr, alpha = 0.02, 0.7
    w = {task: weights[task].clone().requires_grad_() for task in losses}
    norms = []
    for task, loss in losses.items():
        grads = torch.autograd.grad(w[task] * loss, net.last(), create_graph=True)
        norms.append(torch.cat([g.flatten() for g in grads]).norm())
    mean = sum(n.item() for n in norms) / len(norms)
    ratios = [loss.item() / first.setdefault(task, loss.item()) for task, loss in losses.items()]
    rates = [ratio / (sum(ratios) / len(ratios)) for ratio in ratios]
    objective = torch.stack([(n - mean * r**alpha).abs() for n, r in zip(norms, rates, strict=True)]).sum()
    slopes = torch.autograd.grad(objective, list(w.values()), retain_graph=True)
    torch.stack([w[task].detach() * loss for task, loss in losses.items()]).sum().backward()
    for task, slope in zip(losses, slopes, strict=True):
        weights[task] = weights[task] - lr * slope
    scale = len(TASKS) / sum(weights.values())
    for task in TASKS:
        weights[task] = weights[task] * scale


def test_grad_norm_follows_the_algorithm_step_by_step() -> None:
    """Also through steps without some task, and across a stop: weights and first losses are in the state dict."""
    net, twin, balancer = Net(), Net(), _balancer("grad_norm")
    weights, first = {task: torch.ones((), dtype=torch.float64) for task in TASKS}, {}
    for step, tasks in enumerate([("a", "b"), TASKS, TASKS, ("c", "a"), ("b",), TASKS]):
        _grad_norm_step(twin, twin.losses(step, tasks), weights, first)
        if step == 3:
            state = balancer.state_dict()
            balancer = _balancer("grad_norm")
            balancer.load_state_dict(state)
        balancer.backward(net.losses(step, tasks), net.last())
        _check(net, _named_gradients(twin))
        np.testing.assert_allclose(balancer.weights, list(weights.values()), rtol=1e-6)  # type: ignore[arg-type]
        for model in (net, twin):
            torch.optim.SGD(model.parameters(), lr=0.05).step()
            model.zero_grad()
    assert np.ptp(list(weights.values())) > 0.1


def test_grad_norm_survives_losses_it_cannot_compare() -> None:
    net, balancer = Net(), build_balancer(balance.GradNormConfig(lr=50.0), tasks=TASKS)
    factors = {"a": 1.0, "b": 0.0, "c": math.inf}
    balancer.backward({task: factors[task] * loss for task, loss in net.losses().items()}, net.last())
    assert balancer.first_losses.isnan().tolist() == [False, True, True]  # type: ignore[operator]
    assert balancer.weights.tolist() == [1, 1, 1]  # type: ignore[operator]
    for step in range(4):  # steps far too large
        balancer.backward(net.losses(step), net.last())
        assert (balancer.weights >= 0).all()  # type: ignore[operator]
        assert balancer.weights.sum().item() == pytest.approx(3)  # type: ignore[operator]


def _pcgrad_loops(gradients: list[np.ndarray], orders: Sequence[Sequence[int]]) -> np.ndarray:
    """Algorithm 1 with the given order of the others for each task."""
    total = np.zeros_like(gradients[0])
    for i, order in enumerate(orders):
        own = gradients[i].copy()
        for j in order:
            dot = sum(p * q for p, q in zip(own, gradients[j], strict=True))
            if dot < 0:
                own = own - dot / sum(q * q for q in gradients[j]) * gradients[j]
        total += own
    return total


def _flat(gradients: Mapping[str, np.ndarray], net: Net) -> np.ndarray:
    shared = [(name, p.shape) for name, p in net.named_parameters() if not name.startswith("heads")]
    return np.concatenate([np.broadcast_to(gradients[name], shape).ravel() for name, shape in shared])


@pytest.mark.parametrize("tasks", [TASKS, ("a", "b"), ("c",)])
def test_pcgrad_projects_the_shared_gradients(tasks: tuple[str, ...]) -> None:
    net, (values, gradients) = Net(), _each(tasks)
    total = _balancer("pcgrad").backward(net.losses(tasks=tasks), net.shared())
    assert total.item() == pytest.approx(sum(values.values()))
    plain = _weighted(gradients, dict.fromkeys(TASKS, 1.0))
    _check(net.heads, {name.removeprefix("heads."): grad for name, grad in plain.items()})
    flat = [_flat(gradients[task], net) for task in tasks]
    others = [list(itertools.permutations([j for j in range(len(tasks)) if j != i])) for i in range(len(tasks))]
    allowed = [_pcgrad_loops(flat, orders) for orders in itertools.product(*others)]
    found = _flat(_named_gradients(net), net)
    assert any(np.allclose(found, one, rtol=1e-9, atol=1e-12) for one in allowed)
    if len(tasks) > 1:
        assert not np.allclose(found, sum(flat), rtol=1e-3)  # the tasks do conflict
    assert net.unused.grad is None


def _pcgrad_gradients(balancer: Balancer) -> np.ndarray:
    net = Net()
    balancer.backward(net.losses(), net.shared())
    return _flat(_named_gradients(net), net)


def test_pcgrad_shuffles_repeatably_and_resumes() -> None:
    balancer = _balancer("pcgrad")
    run = [_pcgrad_gradients(balancer) for _ in range(12)]
    assert any(not np.allclose(one, run[0], rtol=1e-4) for one in run)
    again = _balancer("pcgrad")
    for one in run[:5]:
        np.testing.assert_array_equal(_pcgrad_gradients(again), one)
    resumed = build_balancer(balance.PcGradConfig(seed=99), tasks=TASKS)
    resumed.load_state_dict(again.state_dict())
    for one in run[5:]:
        np.testing.assert_array_equal(_pcgrad_gradients(resumed), one)


@pytest.mark.parametrize("kind", balance.BALANCERS)
def test_gradients_add_up_over_steps(kind: str) -> None:
    """Two passes give the sum of each alone, in the very tensor that was there."""
    balancer, net, alone = _balancer(kind), Net(), []
    net.shift.requires_grad_(False)
    net.trunk["last"].weight.grad = there = torch.zeros(4, 4, dtype=torch.float64)
    for step in range(2):
        single, twin = Net(), _balancer(kind)
        single.shift.requires_grad_(False)
        twin.load_state_dict(balancer.state_dict())
        twin.backward(single.losses(step), single.shared())
        alone.append(_named_gradients(single))
        balancer.backward(net.losses(step), net.shared())
    assert net.trunk["last"].weight.grad is there
    _check(net, {name: alone[0][name] + alone[1][name] for name in alone[0]})
    assert net.shift.grad is None and net.unused.grad is None


@pytest.mark.parametrize("kind", balance.BALANCERS)
def test_a_step_without_any_task_changes_nothing(kind: str) -> None:
    net, balancer = Net(), _balancer(kind)
    before = {key: value.clone() for key, value in balancer.state_dict().items()}
    assert balancer.backward({}, net.shared()).item() == 0
    assert all(p.grad is None for p in net.parameters())
    torch.testing.assert_close(dict(balancer.state_dict()), before, equal_nan=True)


def test_mistakes_name_what_is_known() -> None:
    net = Net()
    with pytest.raises(UsageError, match=r"losses name x; the tasks are a, b, c"):
        _balancer("static").backward({"x": torch.zeros(())}, net.shared())
    for config in (balance.StaticConfig(weights={"x": 1.0}), balance.UncertaintyConfig(regression=("x",))):
        with pytest.raises(UsageError, match=r"(weights|regression tasks) name x"):
            build_balancer(config, tasks=TASKS)
    for kind in ("grad_norm", "pcgrad"):
        with pytest.raises(UsageError, match=r"shared parameters that train"):
            _balancer(kind).backward(net.losses(), [])
    with pytest.raises(ValidationError, match=r"'static', 'uncertainty', 'grad_norm', 'pcgrad'"):
        TypeAdapter(balance.BalancerConfig).validate_python({"kind": "nash"})


def _encoders() -> dict[str, list[nn.Parameter]]:
    """A convolution's weight and bias and an untouched weight for each modality, with gradients."""
    rng = torch.Generator().manual_seed(1)
    shapes = ((3, 2, 2, 2), (3,), (1,), (2, 1, 1, 1))
    encoders = {name: [nn.Parameter(torch.zeros(shape)) for shape in shapes] for name in ("image", "audio")}
    for p in (*encoders["image"][:3], *encoders["audio"][:3]):
        p.grad = torch.randn(p.shape, generator=rng) + 1
    return encoders


@pytest.mark.parametrize(
    ("image", "audio"), [([0.9, 0.6], [0.3, 0.2]), ([0.1, 0.2], [1, 0]), ([0.5, 0.5], [0.75, 0.25]), ([1, 1], [0, 0])]
)
@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("conv_only", [True, False])
def test_ogm_ge_equals_numpy(image: list[float], audio: list[float], noise: bool, conv_only: bool) -> None:
    encoders = _encoders()
    draws = torch.Generator().manual_seed(2)
    scores = {"image": np.array(image, np.float32), "audio": np.array(audio, np.float32)}
    with np.errstate(divide="ignore"):
        ahead = {"image": scores["image"].sum() / scores["audio"].sum(), "audio": scores["audio"].sum() / sum(image)}
    factor = {name: 1 - np.tanh(0.4 * ratio) if ratio > 1 else 1.0 for name, ratio in ahead.items()}
    expected = []
    for name, params in encoders.items():
        for p in params[:3]:
            assert p.grad is not None
            grad = p.grad.numpy().astype(np.float64)
            if grad.ndim == 4 or not conv_only:
                drawn = torch.randn(grad.shape, generator=draws).numpy() if noise else 0.0
                spread = np.sqrt(((grad - grad.mean()) ** 2).sum() / max(grad.size - 1, 1))
                grad = factor[name] * grad + spread * drawn
            expected.append(grad)
    generator = torch.Generator().manual_seed(2) if noise else None
    given = {name: torch.tensor(values, requires_grad=True) for name, values in scores.items()}
    ogm_ge_(encoders, given, alpha=0.4, generator=generator, conv_only=conv_only)
    for p, wanted in zip((*encoders["image"][:3], *encoders["audio"][:3]), expected, strict=True):
        np.testing.assert_allclose(p.grad, wanted, rtol=1e-5, atol=1e-6)
    assert all(params[3].grad is None for params in encoders.values())


def test_ogm_ge_takes_two_modalities() -> None:
    with pytest.raises(UsageError, match="audio.*text"):
        ogm_ge_(_encoders(), {"image": torch.ones(2), "text": torch.ones(2)}, alpha=0.4, generator=None)
