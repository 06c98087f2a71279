"""timm's encoders: strides, any size of image, normalization, weights from a file, and messages."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

timm = pytest.importorskip("timm")

from semiseg.build import make_student  # noqa: E402
from semiseg.data.transforms import Normalize  # noqa: E402
from semiseg.models.backbones import make_backbone  # noqa: E402
from semiseg.options import Network  # noqa: E402
from semiseg.recipe import Recipe, recipe  # noqa: E402

CONVOLUTIONAL = ("test_resnet", "resnet10t", "test_convnext", "test_efficientnet")


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", [*CONVOLUTIONAL, "test_mambaout", "test_vit", "test_vit4"])
def test_encoders_have_the_strides_and_channels_they_promise(name: str, stride: int) -> None:
    net = make_backbone(f"timm:{name}", stride).eval()
    for height, width in ((64, 96), (65, 51)):
        low, deep = net(torch.rand(2, 3, height, width))
        assert low.shape == (2, net.low_channels, -(-height // 4), -(-width // 4))
        assert deep.shape == (2, net.deep_channels, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_encoders_are_dilated_and_not_resized(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = make_backbone(f"timm:{name}", 8).eval()
    monkeypatch.setattr(torch.nn.functional, "interpolate", None)
    assert net(torch.rand(1, 3, 64, 64))[1].shape[-2:] == (8, 8)


def test_channels_last_maps_are_turned() -> None:
    net = make_backbone("timm:swin_tiny_patch4_window7_224", 16).eval()
    low, deep = net(torch.rand(1, 3, 64, 96))
    assert (net.low_channels, net.deep_channels) == (96, 768)
    assert low.shape == (1, 96, 16, 24) and deep.shape == (1, 768, 4, 6)
    maps = net.net(torch.zeros(1, 3, 64, 96))
    torch.testing.assert_close(
        net((torch.zeros(1, 3, 64, 96) - net.shift) / net.scale)[0][0, :, 3, 5], maps[0][0, 3, 5]
    )


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])  # mean and deviation 0.5
def test_images_arrive_normalized_as_the_encoder_expects(name: str) -> None:
    net = make_backbone(f"timm:{name}", 16).eval()
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    config = timm.create_model(name).pretrained_cfg
    theirs = Normalize(config["mean"], config["std"])(image)
    torch.testing.assert_close(net.normalized(Normalize()(image)), theirs, rtol=1e-5, atol=1e-5)
    assert config["mean"] == (0.5, 0.5, 0.5) or net.same


def test_a_transformer_gives_an_early_and_the_last_map() -> None:
    net = make_backbone("timm:test_vit4", 16).eval()
    x = torch.rand(1, 3, 64, 80)
    low, deep = net(x)
    every = net.net.forward_intermediates(net.normalized(x), norm=True, output_fmt="NCHW", intermediates_only=True)
    torch.testing.assert_close(deep, every[-1])
    assert net.indices[0] < net.indices[1] == len(every) - 1 and low.shape[-2:] == (16, 20)


def test_position_embeddings_follow_the_size_of_the_image() -> None:
    net = make_backbone("timm:test_vit", 16).eval()
    flat = torch.zeros(1, 3, 64, 64)
    assert net(flat)[1].std((-2, -1)).max() > 0
    with torch.no_grad():
        net.net.pos_embed.zero_()
    assert net(flat)[1].std((-2, -1)).max() < 1e-5


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_a_file(name: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = timm.create_model(name, num_classes=7)
    path = tmp_path / f"w.{suffix}"
    torch.save(theirs.state_dict(), path) if suffix == "pth" else save_file(theirs.state_dict(), path)
    ours = make_backbone(f"timm:{name}", 16, path).net.state_dict()
    given = theirs.state_dict()
    shared = [k for k in ours if k in given]
    assert len(shared) > 10 and all(torch.equal(ours[k], given[k]) for k in shared)
    assert len(shared) >= len(ours) - 2


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet\.pth does not fit timm:test_vit: \d+ missing"):
        make_backbone("timm:test_vit", 16, tmp_path / "resnet.pth")
    with pytest.raises(FileNotFoundError, match=r"no weights at .*absent\.pth"):
        make_backbone("timm:test_vit", 16, tmp_path / "absent.pth")
    (tmp_path / "half.pth").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"half\.pth cannot be read as weights"):
        make_backbone("timm:test_vit", 16, tmp_path / "half.pth")


def test_unknown_names_say_what_looks_alike() -> None:
    with pytest.raises(ValueError, match=r"unknown backbone 'timm:resnt50'; .*alike: .*timm:resnet50"):
        Network("timm:resnt50")
    with pytest.raises(ValueError, match=r"timm\.list_models\(\) has all names"):
        Network("timm:" + "q" * 40)
    with pytest.raises(ValueError, match="timm:test_coatnet takes images of one size alone"):
        make_backbone("timm:test_coatnet")
    with pytest.raises(ValueError, match=r"strides \[32, 32, 32\]; one of 4 is needed"):
        make_backbone("timm:mixer_s32_224")
    assert Network("timm:resnet50.a1_in1k").backbone.endswith("a1_in1k")


def test_without_timm_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'semiseg\[timm\]'"):
        make_backbone("timm:test_vit")
    assert Network("timm:whatever").backbone == "timm:whatever", "records can be read without timm"


def test_a_recipe_builds_a_network_that_learns_in_every_part() -> None:
    made = recipe("mean_teacher", "digits", "1_4", "smoke")
    values = made.as_dict() | {"network": made.as_dict()["network"] | {"backbone": "timm:test_vit", "weights": None}}
    net = make_student(Recipe.from_dict(values), 4)
    out = net(torch.rand(2, 3, 32, 32))
    assert out.logits.shape == (2, 4, 32, 32)
    out.logits.square().mean().backward()
    assert all(p.grad is not None for p in net.backbone.net.blocks.parameters())
