"""Encoders, DeepLabV3+, dual batch normalization and the teacher."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.nn as nn
import torchvision.models as tv
from safetensors.torch import save_file

from semiseg.models.backbones import make_backbone
from semiseg.models.deeplabv3plus import DeepLabV3Plus
from semiseg.models.names import BACKBONES
from semiseg.models.normalization import DualBatchNorm2d, second_statistics
from semiseg.models.teacher import Teacher

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", [b for b in BACKBONES if b != "resnet101"])
def test_backbones_have_the_stride_and_channels_they_promise(name: str, stride: int) -> None:
    net = make_backbone(name, stride)
    low, deep = net(torch.rand(2, 3, 64, 64))
    assert low.shape == (2, net.low_channels, 16, 16)
    side = 64 // (8 if name == "tiny" else stride)
    assert deep.shape == (2, net.deep_channels, side, side)


@pytest.mark.parametrize(("stride", "replace"), [(16, [False, False, True]), (8, [False, True, True])])
def test_dilated_resnet50_is_torchvisions(stride: int, replace: list[bool], tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = tv.resnet50(replace_stride_with_dilation=replace).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = make_backbone("resnet50", stride, tmp_path / "weights.pth").eval()
    x = torch.rand(1, 3, 96, 80)
    want = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    want = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(want))))
    torch.testing.assert_close(ours(x)[1], want)


def test_mobilenet_at_full_stride_positions_agrees_with_torchvision(tmp_path: Path) -> None:
    theirs = tv.mobilenet_v2().eval()
    kept = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k and not k.startswith("classifier")}
    save_file(kept, tmp_path / "weights.safetensors")
    ours = make_backbone("mobilenet_v2", 16, tmp_path / "weights.safetensors").eval()
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(ours(x)[0], theirs.features[:4](x))
    torch.testing.assert_close(ours.deep[:10](ours.low(x)), theirs.features[:14](x))


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights at .*absent\.pth"):
        make_backbone("resnet18", 16, tmp_path / "absent.pth")
    (tmp_path / "broken.pth").write_bytes(b"not a tensor file")
    with pytest.raises(ValueError, match=r"broken\.pth cannot be read as weights"):
        make_backbone("resnet18", 16, tmp_path / "broken.pth")
    torch.save(tv.resnet18().state_dict(), tmp_path / "r18.pth")
    with pytest.raises(ValueError, match=r"does not fit resnet34: \d+ missing"):
        make_backbone("resnet34", 16, tmp_path / "r18.pth")
    with pytest.raises(ValueError, match="unknown backbone 'vgg'; expected one of tiny, mobilenet_v2"):
        make_backbone("vgg")
    with pytest.raises(ValueError, match="output stride must be 8 or 16, got 32"):
        make_backbone("resnet18", 32)
    with pytest.raises(ValueError, match="has no pretrained weights"):
        make_backbone("tiny", 8, "imagenet")


def test_without_a_network_the_weights_address_and_place_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(
        ConnectionError, match=r"of mobilenet_v2 cannot .*not known.*https://.*\.pth .* into .*pass the"
    ):
        make_backbone("mobilenet_v2", 16, "imagenet")


def network(**options) -> DeepLabV3Plus:
    torch.manual_seed(0)
    return DeepLabV3Plus(make_backbone("tiny"), 5, width=16, low_width=8, rates=(1, 2), **options)


def test_the_stages_compose_to_the_whole() -> None:
    net, x = network(embedding=6).eval(), torch.rand(2, 3, 40, 36)
    whole = net(x)
    z, deep = net.trunk(x)
    assert z.shape == (2, net.decoder_width, 10, 9) and whole.features.shape == (2, 16, 10, 9)
    assert whole.logits.shape == (2, 5, 40, 36) and whole.embedding.shape == (2, 6, 10, 9)
    torch.testing.assert_close(net.head(net.refine(z), deep, (40, 36)).logits, whole.logits)
    assert network().eval()(x).embedding.shape[1] == 0


@pytest.mark.parametrize(("status", "first_main"), [("clean", None), ("adv", 0), ("warm_up", 3), ("mix", 4)])
def test_dual_batch_norm_matches_official_routings(status: str, first_main: int | None) -> None:
    g = torch.load(GOLDEN / "ddfp_mixbn.pt", weights_only=True)

    def renamed(state: dict) -> dict:
        second = {k.replace("aux_bn.", "second."): v for k, v in state.items() if k.startswith("aux_bn.")}
        return {f"main.{k}": v for k, v in state.items() if not k.startswith("aux_bn.")} | second

    layer = DualBatchNorm2d(4)
    layer.load_state_dict(renamed(g["state"]))
    layer.first_main = first_main
    torch.testing.assert_close(layer(g["x"]), g[status]["out"], rtol=1e-5, atol=1e-6)
    for key, value in renamed(g[status]["state_after"]).items():
        torch.testing.assert_close(
            layer.state_dict()[key], value, rtol=1e-5, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_second_statistics_are_used_inside_and_left_outside_even_after_an_error() -> None:
    net = network(second_bn=True)
    layers = [m for m in net.modules() if isinstance(m, DualBatchNorm2d)]
    assert len(layers) == 2
    with pytest.raises(RuntimeError), second_statistics(net):
        assert all(m.first_main == 0 for m in layers)
        raise RuntimeError
    assert all(m.first_main is None for m in layers)


def drift(model: nn.Module, step: int) -> None:
    g = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for v in model.state_dict().values():
            v.copy_(v + torch.randn(v.shape, generator=g) if v.is_floating_point() else v + 1)


@pytest.mark.parametrize("own_statistics", [False, True])
def test_teacher_follows_in_closed_form(own_statistics: bool) -> None:
    student = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    teacher = Teacher(student, decay=0.6, own_statistics=own_statistics)
    want = {k: v.clone().double() for k, v in student.state_dict().items()}
    start = {k: v.clone() for k, v in student.state_dict().items()}
    for step in range(1, 6):
        drift(student, step)
        teacher.follow(student)
        a = min(1 - 1 / (step + 1), 0.6)
        for k, s in student.state_dict().items():
            want[k] = a * want[k] + (1 - a) * s.double() if s.is_floating_point() else s.double()
    parameters = {k for k, _ in student.named_parameters()}
    for k, t in teacher.model.state_dict().items():
        expected = want[k] if k in parameters or not own_statistics else start[k].double()
        torch.testing.assert_close(t.double(), expected, rtol=1e-5, atol=1e-5, msg=lambda m, k=k: f"{k}: {m}")


def test_decay_zero_is_the_student_itself() -> None:
    student = network()
    teacher = Teacher(student, decay=0.0, own_statistics=True)
    drift(student, 3)
    teacher.follow(student)
    for t, s in zip(teacher.model.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(t, s)


def test_teacher_modes_and_no_gradient() -> None:
    student = network()
    ema, own = Teacher(student), Teacher(student, own_statistics=True)
    for teacher, training in ((ema, False), (own, True)):
        teacher.train()
        assert teacher.model.training is training
        assert not any(p.requires_grad for p in teacher.parameters())
        assert not teacher(torch.rand(2, 3, 32, 32)).logits.requires_grad
        teacher.eval()
        assert not teacher.model.training
    assert student.training and all(p.requires_grad for p in student.parameters())


def test_teacher_copy_takes_buffers_too() -> None:
    student = network()
    teacher = Teacher(student, own_statistics=True)
    drift(student, 1)
    teacher.copy(student)
    assert all(
        torch.equal(t, s)
        for t, s in zip(teacher.model.state_dict().values(), student.state_dict().values(), strict=True)
    )


def test_decay_must_be_below_one() -> None:
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1.0"):
        Teacher(nn.Conv2d(1, 1, 1), decay=1.0)


def test_copies_go_on_with_the_ramp_where_they_count() -> None:
    student = nn.Linear(1, 1, bias=False)
    for counted in (False, True):
        teacher = Teacher(student, decay=0.999)
        for _ in range(8):
            teacher.copy(student, counted)
        with torch.no_grad():
            teacher.model.weight.zero_()
            student.weight.fill_(1.0)
        teacher.follow(student)
        assert teacher.model.weight.item() == pytest.approx(1 / 10 if counted else 1 / 2)
