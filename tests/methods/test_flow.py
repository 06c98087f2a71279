"""The flow and its mixture against the numbers recorded from the official code, and against their definitions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from semiseg.methods.flow import UNLABELED, MixtureFlow

GOLDEN = Path(__file__).parents[1] / "golden"
OFFICIAL_UNLABELED = 300


def recorded(name: str, dtype: torch.dtype) -> tuple[MixtureFlow, dict, dict]:
    g = torch.load(GOLDEN / name, weights_only=True)
    c = g["cfg"]["flow"]
    flow = MixtureFlow(c["input_dims"], c["n_components"], hidden=c["layer_dims"], clamp=c["clamping"])
    assert all(torch.equal(flow.inn[2 * i + 1].perm, perm) for i, perm in enumerate(g["permutations"])), (
        "the fixed permutations are drawn as the official code draws them"
    )
    flow.load_state_dict(g["state_dict"])
    return flow.to(dtype), g, g["f64" if dtype == torch.float64 else "f32"]


def our_labels(y: Tensor) -> Tensor:
    return torch.where(y == OFFICIAL_UNLABELED, UNLABELED, y)


CASES = [(n, d) for n in ("ddfp_flow_small.pt", "ddfp_flow_odd_dim.pt") for d in (torch.float32, torch.float64)]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_flow_matches_official_values(name: str, dtype: torch.dtype) -> None:
    flow, g, want = recorded(name, dtype)
    x, y = g["x"].to(dtype), our_labels(g["y"])
    close = {"rtol": 1e-5, "atol": 1e-5}
    z, log_det = flow.encode(x)
    torch.testing.assert_close(z, want["z"], **close)
    torch.testing.assert_close(log_det, want["log_det"], **close)
    torch.testing.assert_close(flow.decode(z), x, **close)
    torch.testing.assert_close(flow.component_log_prob(x) - log_det[:, None], want["component_log_prob"], **close)
    torch.testing.assert_close(flow.log_prob(x) - log_det, want["mixture_log_prob"], **close)
    torch.testing.assert_close(flow.log_prob(x, y) - log_det, want["log_prob_xy"], **close)
    torch.testing.assert_close(-flow.log_prob(x, y).mean(), want["nll_xy"], **close)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_gradients_and_one_adam_step_match_official(name: str, dtype: torch.dtype) -> None:
    flow, g, want = recorded(name, dtype)
    x, y = g["x"].to(dtype), our_labels(g["y"])
    moving = x.clone().requires_grad_()
    (grad_x,) = torch.autograd.grad(-flow.log_prob(moving).mean(), moving)
    torch.testing.assert_close(grad_x, want["grad_x_of_nll_mixture"], rtol=1e-4, atol=1e-6)

    trained = [p for p in flow.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained, 1e-3, betas=(0.5, 0.9))
    (-flow.log_prob(x, y).mean()).backward()
    for key, grad in want["grads_of_nll_xy"].items():
        torch.testing.assert_close(
            flow.get_parameter(key).grad, grad, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
        )
    torch.nn.utils.clip_grad_norm_(trained, g["cfg"]["flow"]["grad_clip"])
    adam.step()
    for key, value in want["state_after_one_adam_step"].items():
        torch.testing.assert_close(
            flow.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_mixture_matches_official_and_the_naive_formula() -> None:
    g = torch.load(GOLDEN / "ddfp_gmm.pt", weights_only=True)
    flow = MixtureFlow(g["means"].shape[1], len(g["means"]))
    flow.means.data = g["means"]
    flow.encode = lambda v: (v, v.new_zeros(len(v)))  # type: ignore[method-assign]
    torch.testing.assert_close(flow.component_log_prob(g["x"]), g["component_log_prob"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(flow.log_prob(g["x"]), g["mixture_log_prob"], rtol=1e-5, atol=1e-5)
    naive = -0.5 * ((g["x"][:, None] - g["means"]) ** 2).sum(-1) - 0.5 * g["x"].shape[1] * math.log(2 * math.pi)
    torch.testing.assert_close(flow.component_log_prob(g["x"]), naive, rtol=1e-5, atol=1e-5)


def test_log_determinant_is_that_of_the_jacobian() -> None:
    torch.manual_seed(0)
    flow = MixtureFlow(6, 3, hidden=16).double()
    v = torch.randn(5, 6, dtype=torch.float64)
    for row, log_det in zip(v, flow.encode(v)[1], strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda u: flow.encode(u[None])[0][0], row)
        assert math.isclose(torch.linalg.slogdet(jacobian).logabsdet.item(), log_det.item(), abs_tol=1e-9)


def test_density_integrates_to_one() -> None:
    torch.manual_seed(0)
    flow = MixtureFlow(2, 2, hidden=8)
    axis = torch.linspace(-12, 12, 400)
    grid = torch.cartesian_prod(axis, axis)
    mass = flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass.item() - 1) < 1e-3


def test_building_a_flow_leaves_numpy_alone() -> None:
    np.random.seed(5)
    want = np.random.rand(3)
    np.random.seed(5)
    MixtureFlow(8, 2)
    assert np.array_equal(np.random.rand(3), want)


def test_fixed_means_are_not_trained() -> None:
    flow = MixtureFlow(4, 2, hidden=8, learn_means=False)
    (-flow.log_prob(torch.randn(9, 4)).mean()).backward()
    assert flow.means.grad is None and flow.inn[0].subnet1[0].weight.grad is not None


@pytest.mark.parametrize("label", [255, 3, -2])
def test_a_label_no_component_has_is_an_error(label: int) -> None:
    flow = MixtureFlow(4, 3, hidden=8)
    with pytest.raises(ValueError, match=r"flow labels must be -1 or 0\.\.2"):
        flow.log_prob(torch.randn(2, 4), torch.tensor([0, label]))


def test_too_few_channels_is_an_error() -> None:
    with pytest.raises(ValueError, match="width >= 2"):
        MixtureFlow(1, 3)
