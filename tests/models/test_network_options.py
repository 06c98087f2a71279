"""What the options of the network change: stem, multi-grid, projection, dropout, projector, auxiliary head, weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor

from semiseg.build import make_student, without_pretraining
from semiseg.components import labeled_terms
from semiseg.losses import hard_pixel_cross_entropy, labeled_cross_entropy
from semiseg.models.backbones import Backbone, make_backbone
from semiseg.models.deeplabv3plus import DeepLabV3Plus
from semiseg.options import Network
from semiseg.recipe import recipe
from semiseg.types import IGNORE, Output, Target

STEM = {"0": (64, 3, 3, 3), "1": (64,), "3": (64, 64, 3, 3), "4": (64,), "6": (128, 64, 3, 3)}


def dilations(stage: nn.Module) -> list[int]:
    found = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert all(m.padding == m.dilation and m.dilation[0] == m.dilation[1] for m in found)
    return [int(m.dilation[0]) for m in found]


def number(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def encoder(name: str, stride: int = 16, **options: Any) -> Backbone:
    made = make_backbone(name, stride, **options)
    assert isinstance(made, Backbone)
    return made


def network(backbone: str = "tiny", **options: Any) -> DeepLabV3Plus:
    torch.manual_seed(0)
    return DeepLabV3Plus(make_backbone(backbone), 5, width=16, low_width=8, rates=(1, 2), **options)


# --- encoder ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stride", "multi_grid", "layer3", "layer4"),
    [
        ("resnet50", 16, (1, 1, 1), [1] * 6, [1, 2, 2]),
        ("resnet50", 16, (2, 2, 4), [1] * 6, [2, 4, 8]),
        ("resnet50", 8, (1, 1, 1), [1, 2, 2, 2, 2, 2], [2, 4, 4]),
        ("resnet50", 8, (2, 2, 4), [1, 2, 2, 2, 2, 2], [4, 8, 16]),
        ("resnet50", 16, (1, 2, 4), [1] * 6, [1, 4, 8]),
        ("resnet34", 16, (2, 2, 4), [1] * 12, [2, 4, 4, 4, 8, 8]),
        ("resnet18", 16, (1, 3), [1] * 4, [1, 2, 6, 6]),
    ],
)
@pytest.mark.parametrize("stem", ["resnet", "deep"])
def test_dilation_of_each_convolution(
    name: str, stride: int, multi_grid: tuple[int, ...], layer3: list[int], layer4: list[int], stem: str
) -> None:
    with torch.device("meta"):
        made = encoder(name, stride, multi_grid=multi_grid, stem=stem)
    assert dilations(made.deep[1]) == layer3 and dilations(made.deep[2]) == layer4
    assert set(dilations(made.low)) | set(dilations(made.deep[0])) == {1}


def test_a_deep_stem_has_three_convolutions_and_the_names_of_released_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = encoder("resnet50", stem="deep")
    names = {("low", "0"): "conv1", ("low", "1"): "bn1", ("low", "4"): "layer1"}
    names |= {("deep", str(i)): f"layer{i + 2}" for i in range(3)}
    released = {}
    for key, value in net.state_dict().items():
        part, at, rest = key.split(".", 2)
        released[f"{names[part, at]}.{rest}"] = value
    first = {key.split(".")[1]: tuple(v.shape) for key, v in released.items() if key.startswith("conv1.") and v.dim()}
    assert first == STEM
    plain, deep = tv.resnet50().state_dict(), {k: tuple(v.shape) for k, v in released.items()}
    rest = {k: tuple(v.shape) for k, v in plain.items() if not k.startswith(("fc.", "conv1.", "bn1."))}
    rest["layer1.0.conv1.weight"], rest["layer1.0.downsample.0.weight"] = (64, 128, 1, 1), (256, 128, 1, 1)
    assert rest.items() <= deep.items() and deep["bn1.weight"] == (128,)
    assert deep.keys() == rest.keys() | {k for k in deep if k.startswith(("conv1.", "bn1."))}

    torch.save(released, tmp_path / "released.pth")
    read = encoder("resnet50", weights=tmp_path / "released.pth", stem="deep").eval()
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(read(x)[1], net.eval()(x)[1], rtol=0, atol=0)
    torch.save(plain, tmp_path / "plain.pth")
    with pytest.raises(ValueError, match=r"plain\.pth does not fit resnet50: \d+ missing"):
        make_backbone("resnet50", 16, tmp_path / "plain.pth", stem="deep")


def test_a_deep_stem_starts_as_torchvisions_layers_do() -> None:
    torch.manual_seed(0)
    net = encoder("resnet50", stem="deep")
    for conv in (*(m for m in net.low[0] if isinstance(m, nn.Conv2d)), net.low[4][0].downsample[0]):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert float(conv.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1) and conv.bias is None
    low, middle, deep = net.maps(torch.rand(2, 3, 64, 64))
    assert low.shape == (2, 256, 16, 16) and middle.shape == (2, 1024, 4, 4) and deep.shape == (2, 2048, 4, 4)


@pytest.mark.parametrize("weights", ["imagenet", "imagenet_v1"])
def test_a_deep_stem_has_no_weights_of_torchvision(weights: str) -> None:
    made = recipe("supervised", "voc", "1_8", "paper").changed({"network.stem": "deep", "network.weights": weights})
    with pytest.raises(ValueError, match=r"^torchvision has no weights of resnet101 with a deep stem; give a file"):
        make_student(made, 21)


@pytest.mark.parametrize(
    ("name", "weights", "file"),
    [
        ("resnet50", "imagenet", "resnet50-11ad3fa6"), ("resnet50", "imagenet_v1", "resnet50-0676ba61"),
        ("resnet101", "imagenet", "resnet101-cd907fc2"), ("resnet101", "imagenet_v1", "resnet101-63fe2227"),
        ("mobilenet_v2", "imagenet_v1", "mobilenet_v2-b0353104"),
    ],
)  # fmt: skip
def test_which_of_torchvisions_weights_are_taken(
    name: str, weights: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(url: str, **_: object) -> dict[str, Tensor]:
        asked.append(url)
        return tv.get_model(name).state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    with torch.device("meta"):
        make_backbone(name, 16, weights)
    assert [url.rsplit("/", 1)[1] for url in asked] == [f"{file}.pth"]


@pytest.mark.parametrize("name", ["tiny", "mobilenet_v2", "timm:resnet18"])
@pytest.mark.parametrize("option", [{"stem": "deep"}, {"multi_grid": (2, 2, 4)}, {"auxiliary": 0.4}])
def test_other_encoders_say_what_they_do_not_have(name: str, option: dict[str, Any]) -> None:
    message = f"network.{next(iter(option))} needs one of resnet18, .*; {name} does not have it"
    with pytest.raises(ValueError, match=message):
        Network(backbone=name, weights=None, **option)
    if "auxiliary" not in option and ":" not in name:
        with pytest.raises(ValueError, match=message):
            make_backbone(name, 8, **option)


@pytest.mark.parametrize("multi_grid", [(), (2, 2), (0, 1, 1), (2, 2, 4, 8)])
def test_a_multi_grid_has_a_factor_for_each_block(multi_grid: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"network.multi_grid of resnet101 is 3 factors >= 1, got \("):
        Network(multi_grid=multi_grid)


def test_a_recipe_s_options_reach_the_network() -> None:
    changes = "network.weights=none network.stem=deep network.multi_grid=2,2,4 network.projection=1"
    made = recipe("supervised", "voc", "1_8", "paper").changed(
        f"{changes} network.pyramid_dropout=0.5 network.auxiliary=0.4"
    )
    with torch.device("meta"):
        net = make_student(made, 21, embedding=8, projector="decoder")
    assert isinstance(net.backbone, Backbone) and dilations(net.backbone.deep[2]) == [2, 4, 8]
    assert isinstance(net.backbone.low[0], nn.Sequential) and net.aspp.project[0].kernel_size == (1, 1)
    assert (net.aspp.project[3].p, net.auxiliary_weight, net.projector, net.embedding) == (0.5, 0.4, "decoder", 8)


def test_defaults_are_left_out_of_records() -> None:
    added = {"stem", "multi_grid", "projection", "pyramid_dropout", "auxiliary"}
    assert not added & Network().as_dict().keys()
    changed = Network(stem="deep", multi_grid=(2, 2, 4), projection=1, pyramid_dropout=0.0, auxiliary=0.4)
    assert added <= changed.as_dict().keys()


def test_sizes_are_those_of_official_networks() -> None:
    """Parameters of the classes of UniMatch, U2PL, AEL and AugSeg for 21 classes, less biases that a BatchNorm follows.

    Commits 0324f3d, ab3d2be, 747c797 and 7ead870; the encoder is the same in all four.
    """
    official = {
        "unimatch": (59468085 - 42623936, {"projection": 1}, 0, 0),
        "augseg": (16844149, {"projection": 1}, 0, 0),
        "ael": (19998485, {"low_width": 256, "auxiliary": 0.4}, 0, 2365205),
        "u2pl": (21834773, {"low_width": 256, "embedding": 256, "projector": "decoder"}, 1836288, 0),
    }
    for size, options, projector, head in official.values():
        with torch.device("meta"):
            made = DeepLabV3Plus(encoder("resnet101", stem="deep", multi_grid=(2, 2, 4)), 21, **options)
        assert (number(made.backbone), number(made.project), number(made.auxiliary)) == (42623936, projector, head)
        assert number(made) == 42623936 + size + head
        assert len(made.backbone.state_dict()) == 636  # type: ignore[attr-defined]


# --- decoder ------------------------------------------------------------------------------


def test_projection_and_both_dropouts() -> None:
    plain, other = network(), network(projection=1, pyramid_dropout=0.5, dropout=0.0)
    assert plain.aspp.project[0].kernel_size == (3, 3) and other.aspp.project[0].kernel_size == (1, 1)
    assert [m.p for m in plain.modules() if isinstance(m, nn.Dropout2d)] == [0.1, 0.1, 0.1]
    assert other.aspp.project[3].p == 0.5
    assert [m.p for m in other.refine if isinstance(m, nn.Dropout2d)] == [0.0, 0.0]
    assert plain.state_dict().keys() == other.state_dict().keys()
    x = torch.rand(2, 3, 64, 64)
    assert other(x).logits.shape == (2, 5, 64, 64)


def test_features_before_the_last_dropout() -> None:
    net, x = network(dropout=0.5), torch.rand(4, 3, 64, 64)
    torch.manual_seed(0)
    out = net(x)
    assert out.undropped is not None
    kept = (out.features.amax((2, 3)) > 0)[..., None, None]
    assert 0 < kept.float().mean() < 1
    torch.testing.assert_close(out.features, 2 * kept * out.undropped)
    torch.testing.assert_close(out.logits, net.head(out.features, out.deep, (64, 64)).logits)
    net.eval()
    out = net(x)
    assert torch.equal(out.features, out.undropped)
    assert out.rows(1, 3).undropped.shape[0] == 2 and out.rows(1, 3).auxiliary is None  # type: ignore[union-attr]
    assert not out.detach().undropped.requires_grad and out.undropped.requires_grad  # type: ignore[union-attr]


def test_the_projector_of_the_fused_maps_stands_beside_the_refinement() -> None:
    net, x = network(embedding=6, projector="decoder"), torch.rand(2, 3, 64, 64)
    z, deep = net.trunk(x)
    out = net.read(z, deep, (64, 64))
    assert out.embedding.shape == (2, 6, *z.shape[-2:])
    z.retain_grad()
    out.embedding.square().mean().backward()
    assert z.grad is not None and z.grad.abs().sum() > 0
    assert all(p.grad is None for part in (net.refine, net.classify) for p in part.parameters())
    shapes = [tuple(m.weight.shape) for m in net.project.modules() if isinstance(m, nn.Conv2d)]  # type: ignore[union-attr]
    assert shapes == [(16, 24, 3, 3), (16, 16, 3, 3), (6, 16, 1, 1)]
    with pytest.raises(ValueError, match="no projection head on its features"):
        net.embed(torch.rand(3, 16))
    net.eval()
    assert torch.equal(net(x).embedding, net.project(net.trunk(x)[0]))  # type: ignore[misc]
    assert net.head(out.features, deep, (64, 64)).embedding.shape[1] == 0


# --- auxiliary head -----------------------------------------------------------------------


def with_head(weight: float = 0.4) -> tuple[DeepLabV3Plus, Tensor, Tensor]:
    net = network("resnet18", auxiliary=weight)
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 5, (2, 64, 64), generator=g)
    y[:, :20] = IGNORE
    return net, torch.rand(2, 3, 64, 64, generator=g), y


@pytest.mark.parametrize("criterion", [labeled_cross_entropy, hard_pixel_cross_entropy])
def test_the_head_has_the_same_criterion_at_its_weight(criterion: Callable[[Output, Target], Tensor]) -> None:
    net, x, y = with_head()
    out = net(x)
    found = labeled_terms(net, criterion, out, Target.from_labels(y))
    assert list(found) == ["labeled", "auxiliary_head"]
    logits = F.interpolate(out.auxiliary, size=(64, 64), mode="bilinear", align_corners=True)
    wanted = F.cross_entropy(logits, y, ignore_index=IGNORE)
    torch.testing.assert_close(found["auxiliary_head"], 0.4 * wanted)
    torch.testing.assert_close(found["labeled"], F.cross_entropy(out.logits, y, ignore_index=IGNORE))
    y[:] = IGNORE
    assert float(labeled_terms(net, criterion, out, Target.from_labels(y))["auxiliary_head"]) == 0


def test_the_head_chooses_its_own_hard_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = with_head(1.0)
    out, target = net(x), Target.from_labels(y)
    hardest = lambda output, target: F.cross_entropy(output.logits, target.label, reduction="none").max()  # noqa: E731
    found = labeled_terms(net, hardest, out, target)
    logits = F.interpolate(out.auxiliary, size=(64, 64), mode="bilinear", align_corners=True)
    torch.testing.assert_close(found["auxiliary_head"], F.cross_entropy(logits, target.label, reduction="none").max())
    assert found["auxiliary_head"] != found["labeled"]


def test_its_gradient_reaches_layer3_and_not_layer4_or_the_decoder() -> None:
    net, x, y = with_head()
    labeled_terms(net, labeled_cross_entropy, net(x), Target.from_labels(y))["auxiliary_head"].backward()
    learned = {name.rsplit(".", 1)[0] for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    parts = {
        ".".join(name.split(".")[:3]) if name.startswith("backbone.deep") else name.split(".")[0] for name in learned
    }
    assert parts == {"backbone.deep.0", "backbone.deep.1", "backbone", "auxiliary"}


def test_the_head_is_asked_only_where_it_learns() -> None:
    net, x, _ = with_head()
    assert net(x).auxiliary is not None
    with torch.no_grad():
        assert net(x).auxiliary is None
    assert net.eval()(x).auxiliary is None
    assert not any(k.startswith("auxiliary.") for k in net.inference_state())
    assert net.inference_state().keys() == network("resnet18").state_dict().keys()


def test_a_network_without_head_draws_and_computes_what_it_did() -> None:
    net, x = network("resnet18"), torch.rand(2, 3, 64, 64)
    headed, *_ = with_head()
    headed.load_state_dict(net.state_dict(), strict=False)
    results = []
    for each in (net, headed):
        torch.manual_seed(3)
        results.append(each(x).logits)
    torch.testing.assert_close(*results)
    assert "auxiliary_head" not in labeled_terms(
        net, labeled_cross_entropy, net(x), Target.from_labels(torch.zeros(2, 64, 64).long())
    )


def test_an_encoder_without_the_map_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a map before the encoder's last stage"):
        network("mobilenet_v2", auxiliary=0.4)
    made = recipe("supervised", "voc", "1_8", "paper").changed("network.auxiliary=0.4")
    assert without_pretraining(made).network.auxiliary == 0.0
