"""Steps in feature space: exact lengths, what is shared, and which VAT moves anything."""

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import Tensor

from semiseg.build import build
from semiseg.components import ConfidentLabels
from semiseg.hosts.mean_teacher import MeanTeacher
from semiseg.methods.perturbations import VAT, ChannelDropout, RandomNormal, UniformNoise, decoder_of, published_vat
from semiseg.recipe import recipe
from semiseg.types import Target

ANY = Target(torch.zeros(1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1), torch.ones(1, 1, 1))


def features(seed: int = 0) -> Tensor:
    return torch.randn(4, 24, 16, 16, generator=torch.Generator().manual_seed(seed)).relu()


def same(z: Tensor) -> Tensor:
    return z


def kl(decode, x: Tensor, delta: Tensor) -> float:
    with torch.no_grad():
        a, b = decode(x).log_softmax(1), decode(x + delta).log_softmax(1)
    return float(F.kl_div(b, a, reduction="sum", log_target=True) / x[:, 0].numel())


def test_uniform_noise_is_bounded_shared_and_keeps_zeros() -> None:
    x = features()
    delta = UniformNoise(0.3)(x, same, ANY)
    assert (delta.abs() <= 0.3 * x + 1e-6).all() and (delta[x == 0] == 0).all()
    factor = delta / x
    both = (x[0] > 0) & (x[1] > 0)
    torch.testing.assert_close(factor[0][both], factor[1][both])
    assert 0.28 < factor[0][both].max() <= 0.3 + 1e-6


def test_channel_dropout_keeps_the_expectation_and_drops_whole_channels() -> None:
    torch.manual_seed(0)
    x = torch.ones(64, 50, 2, 2)
    moved = x + ChannelDropout(0.5)(x, same, ANY)
    assert set(moved.unique().tolist()) == {0.0, 2.0}
    assert moved.mean() == pytest.approx(1.0, abs=0.05) and (moved.amax((2, 3)) == moved.amin((2, 3))).all()


def test_random_normal_has_the_given_length_at_every_pixel() -> None:
    delta = RandomNormal(4.0)(features(), same, ANY)
    torch.testing.assert_close(delta.norm(dim=1), torch.full((4, 16, 16), 4.0))
    assert abs(delta.mean()) < 0.05


def network():
    torch.manual_seed(0)
    net = toys.student().eval()
    for _ in range(3):  # statistics of real features
        net.train()(torch.rand(4, 3, 32, 32))
    return net.eval()


def test_matched_vat_beats_noise_of_equal_length_and_the_published_one_is_next_to_nothing() -> None:
    net = network()
    decode = decoder_of(net)
    x = net.trunk(torch.rand(4, 3, 64, 64))[0].detach()
    matched, random = VAT(decode)(x, same, ANY), RandomNormal(4.0)(x, same, ANY)
    torch.testing.assert_close(matched.norm(dim=1), torch.full_like(matched[:, 0], 4.0), rtol=1e-4, atol=1e-4)
    assert kl(decode, x, matched) > 2 * kl(decode, x, random) > 0
    published = published_vat(decode)(x, same, ANY)
    assert published.flatten(1).norm(dim=1).max() < 2.1
    assert kl(decode, x, published) < 1e-2 * kl(decode, x, matched)


def test_a_probe_of_1e_6_is_lost_in_float32() -> None:
    """Why the published setting has no direction: half of the probed values equal the unprobed ones."""
    x = torch.randn(1, 304, 81, 81, generator=torch.Generator().manual_seed(0)).relu() + 0.5
    d = torch.rand_like(x) - 0.5
    unit = d / d.flatten().norm()
    assert ((x + 1e-6 * unit) == x).float().mean() > 0.9
    assert ((x + 0.1 * F.normalize(d, dim=1)) == x).float().mean() < 0.1


def test_vat_leaves_the_judge_as_it_was() -> None:
    net = network().train().requires_grad_(False)
    x = net.trunk(torch.rand(2, 3, 32, 32))[0]
    state = {k: v.clone() for k, v in net.refine.state_dict().items()}
    VAT(decoder_of(net))(x, same, ANY)
    assert all(torch.equal(v, net.refine.state_dict()[k]) for k, v in state.items())
    assert net.refine.training and all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("step", ["uniform", "dropout", "normal", "vat", "vat_published"])
def test_each_takes_ddfps_place_in_the_host(step: str) -> None:
    host = build(recipe("ddfp", "digits", "1_8", "smoke").changed({"ddfp.step": step}), toys.K)
    assert isinstance(host, MeanTeacher)
    host.label = ConfidentLabels(0.0)
    host.train()
    found = host.losses(toys.batch(), 0.9)
    assert found.losses["perturbed"] > 0 and "flow_nll" not in found.statistics
    moved, count = found.statistics["step_norm"]
    assert moved / count > 0
    found.losses["perturbed"].backward()
    assert all(p.grad is None for p in host.teacher.parameters())
    assert not any(name.startswith("perturb.") for name in host.state_dict())


def test_the_default_step_is_not_written_so_that_old_records_stay_comparable() -> None:
    base = recipe("ddfp")
    assert "step" not in base.as_dict()["ddfp"]
    other = base.changed({"ddfp.step": "vat"})
    assert other.as_dict()["ddfp"]["step"] == "vat" and other.sha256 != base.sha256
    with pytest.raises(ValueError, match=r"ddfp.step should be 'density', 'normal', 'uniform', .* got 'jump'"):
        base.changed({"ddfp.step": "jump"})
