"""What facts about images and masks mean for training: one small function per thing that can be wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sized

from semiseg.data.inspect.facts import OnDisk, Trouble
from semiseg.data.inspect.survey import Finding, Severity, Survey
from semiseg.data.transforms import SMALLEST
from semiseg.types import IGNORE

_MODES: dict[str, tuple[Severity, str]] = {
    "RGBA": ("warning", "an alpha channel, which is dropped; pixels it hides keep a color nobody has seen"),
    "LA": ("warning", "an alpha channel, which is dropped; pixels it hides keep a color nobody has seen"),
    "PA": ("warning", "an alpha channel, which is dropped; pixels it hides keep a color nobody has seen"),
    "CMYK": ("warning", "printing colors (CMYK), converted without a color profile"),
    "L": ("note", "gray, repeated in three channels; the strong view's colors do nothing to them"),
    "1": ("note", "black and white, repeated in three channels"),
}


def find(survey: Survey) -> list[Finding]:
    """Findings, errors first."""
    order: tuple[Severity, ...] = ("error", "warning", "note")
    found = [finding for rule in _RULES for finding in rule(survey)]
    return sorted(found, key=lambda finding: order.index(finding.severity))


# --- lists --------------------------------------------------------------------------------


def _lists(s: Survey) -> Iterator[Finding]:
    if not s.split.labeled:
        yield Finding("error", "no image is labeled", (), "give at least one training image a mask")
    train = set(s.data.train)
    if strangers := [key for part in ("labeled", "unlabeled") for key in s.parts[part] if key not in train]:
        yield Finding(
            "error", f"{_n(strangers, 'id')} of the split {_are(strangers)} not in the list of training images",
            tuple(strangers), "take the split from the same data set as the list of training images",
        )  # fmt: skip
    for a, b in (("labeled", "unlabeled"), ("labeled", "val"), ("unlabeled", "val")):
        others = set(s.parts[b])
        if both := tuple(dict.fromkeys(key for key in s.parts[a] if key in others)):
            yield Finding("error", f"{_n(both, 'id')} both {a} and {b}", both, f"remove them from the {a} images")
    for part, keys in s.parts.items():
        if double := sorted({key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else ()):
            yield Finding("error", f"{_n(double, 'id')} more than once among the {part} images", tuple(double),
                          "name each image once")  # fmt: skip


def _amounts(s: Survey) -> Iterator[Finding]:
    labeled, unlabeled = len(s.split.labeled), len(s.split.unlabeled)
    if not s.data.val:
        yield Finding(
            "error",
            "no validation images",
            (),
            "keep some images with masks apart; nothing else says how good a model is",
        )
    if labeled and not unlabeled:
        yield Finding("note", "no image is unlabeled", (), "the labeled images serve as unlabeled ones too")
    elif unlabeled < labeled:
        yield Finding(
            "warning", f"fewer unlabeled images ({unlabeled}) than labeled ones ({labeled})", (),
            "compare with the supervised baseline: there is little to gain from so few",
        )  # fmt: skip


# --- files --------------------------------------------------------------------------------


def _unreadable(s: Survey) -> Iterator[Finding]:
    if bad := [f for f in s.facts.values() if f.fault]:
        yield Finding("error", f"{_n(bad, 'image')} cannot be read", tuple(f"{f.key}: {f.fault}" for f in bad),
                      "replace the files, or remove their ids from the lists")  # fmt: skip


def _troubled(trouble: Trouble, what: str, advice: str) -> Callable[[Survey], Iterator[Finding]]:
    def rule(s: Survey) -> Iterator[Finding]:
        if bad := [f for f in s.facts.values() if f.trouble == trouble]:
            yield Finding("error", f"{_n(bad, 'mask')} {what}", tuple(f"{f.key}: {f.mask_fault}" for f in bad), advice)

    return rule


def _outside(s: Survey) -> Iterator[Finding]:
    if bad := [f for f in s.facts.values() if f.trouble == "outside"]:
        said = all("valid are" in f.mask_fault for f in bad)
        valid = "" if said else f"valid are 0 to {len(s.data.classes) - 1} and {IGNORE} (ignore); "
        yield Finding(
            "error", f"{_n(bad, 'mask')} with values that are no class", tuple(f"{f.key}: {f.mask_fault}" for f in bad),
            f"{valid}are all classes listed, do ids start at 0, and were masks saved without loss "
            "(PNG, never JPEG) and resized by nearest neighbor?",
        )  # fmt: skip


def _missing(s: Survey) -> Iterator[Finding]:
    for part, name in (("labeled", "labeled"), ("val", "validation")):
        if bad := tuple(f.key for f in s.of(part) if f.trouble == "missing"):
            yield Finding("error", f"{_n(bad, f'{name} image')} without mask", bad,
                          "add the masks, or move the images to the unlabeled ones")  # fmt: skip


def _strays(s: Survey) -> Iterator[Finding]:
    if isinstance(s.data, OnDisk) and (strays := tuple(path.name for path in s.data.stray_masks())):
        yield Finding("warning", f"{_n(strays, 'mask')} without image", strays,
                      "image and mask need the same name up to the ending")  # fmt: skip


def _sizes(s: Survey) -> Iterator[Finding]:
    if bad := [f for f in s.facts.values() if f.size and f.mask_size and f.size != f.mask_size]:
        where = tuple(f"{f.key}: image {_by(f.size)}, mask {_by(f.mask_size)}" for f in bad)
        yield Finding("error", f"{_n(bad, 'mask')} not as large as the image (height x width)", where,
                      "export image and mask at one size; do not resize masks by interpolation")  # fmt: skip


def _modes(s: Survey) -> Iterator[Finding]:
    by_mode: dict[str, list[str]] = defaultdict(list)
    for f in s.facts.values():
        by_mode["16-bit" if f.mode.startswith(("I", "F")) else f.mode].append(f.key)
    if deep := by_mode.get("16-bit"):
        yield Finding("warning", f"{_n(deep, 'image')} with 16 bits per channel, of which the upper 8 are read",
                      tuple(deep), "convert to 8 bits with a fixed range where values are small")  # fmt: skip
    for mode, (severity, what) in _MODES.items():
        if keys := by_mode.get(mode):
            few = severity == "note" and len(keys) == len(s.facts)  # a gray data set is no surprise
            yield Finding("note" if few else severity, f"{_n(keys, 'image')} of mode {mode}: {what}", tuple(keys),
                          "convert to RGB where this is not intended")  # fmt: skip
    turned = tuple(f.key for f in s.facts.values() if f.turned)
    if masked := tuple(key for key in turned if s.facts[key].mask_size):
        yield Finding("warning", f"{_n(masked, 'image')} with a mask and an orientation tag, which is followed", masked,
                      "see that these masks fit the image as viewers show it; if not, remove the tag")  # fmt: skip
    if bare := tuple(key for key in turned if key not in set(masked)):
        yield Finding("note", f"{_n(bare, 'image')} with an orientation tag, which is followed", bare,
                      "nothing to do: training and prediction see them as viewers show them")  # fmt: skip


def _tiny(s: Survey) -> Iterator[Finding]:
    train = [f for f in s.of("labeled", "unlabeled") if f.size]
    if bad := tuple(f"{f.key}: {_by(f.size)}" for f in train if f.size and min(f.size) < SMALLEST):
        yield Finding("warning", f"{_n(bad, 'training image')} below {SMALLEST} pixels", bad, "remove them")
    if s.crop and (bad := tuple(f"{f.key}: {_by(f.size)}" for f in train if f.size and max(f.size) < s.crop)):
        yield Finding(
            "warning", f"{_n(bad, 'training image')} smaller than the crop of {s.crop} pixels in height and width", bad,
            "what is missing is padded with black that no loss looks at; choose a smaller crop",
        )  # fmt: skip


# --- contents -----------------------------------------------------------------------------


def _twins(s: Survey) -> Iterator[Finding]:
    """The same pixels under two names."""
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for part, keys in s.parts.items():
        for key in keys:
            if key in s.facts and s.facts[key].digest:
                groups[s.facts[key].digest].setdefault(key, part)
    twins = [group for group in groups.values() if len(group) > 1]
    leaks = [group for group in twins if "val" in group.values() and len(set(group.values())) > 1]
    if leaks:
        seen = [key for group in leaks for key, part in group.items() if part == "val"]
        yield Finding("error", f"{_n(seen, 'validation image')} also used for training, under another name",
                      _equal(leaks), "remove them from one side: the score is not one of unseen images")  # fmt: skip
    if others := [group for group in twins if group not in leaks]:
        yield Finding("warning", f"{_n(others, 'image')} more than once, under different names", _equal(others),
                      "remove all but one; pseudo-labels of a copy of a labeled image are no test of them")  # fmt: skip


def _equal(groups: list[dict[str, str]]) -> tuple[str, ...]:
    return tuple(" = ".join(f"{key} ({part})" for key, part in group.items()) for group in groups)


def _binary(s: Survey) -> bool:
    pixels = s.pixels("labeled")
    return bool(pixels[IGNORE] and not pixels[1 : len(s.data.classes)].any())


def _trap(s: Survey) -> Iterator[Finding]:
    if _binary(s):
        where = tuple(f.key for f in s.of("labeled") if f.counts is not None and f.counts[IGNORE])
        yield Finding(
            "error", f"the labeled masks hold no values but 0 and {IGNORE}, and {IGNORE} means 'ignore'", where,
            "masks saved as black and white? Save class ids instead: 0 for the background, 1 for the object; "
            f"of a folder of your own, values = [0, {IGNORE}] in classes.toml will do",
        )  # fmt: skip


def _classes(s: Survey) -> Iterator[Finding]:
    for part, cost in (("labeled", "no method can learn them"), ("val", "their IoU cannot be measured")):
        present = s.images(part)[: len(s.data.classes)]
        absent = tuple(name for name, n in zip(s.data.classes, present, strict=True) if not n)
        if absent and len(absent) < len(s.data.classes) and not _binary(s):
            name = "labeled" if part == "labeled" else "validation"
            what = f"{_n(absent, 'class', 'classes')} in no {name} mask: {cost}"
            yield Finding("warning", what, absent, "choose another split or more images, or leave these classes out")
    images = s.images("labeled")
    if rare := tuple(name for name, n in zip(s.data.classes, images, strict=False) if n == 1):
        yield Finding("note", f"{_n(rare, 'class', 'classes')} in a single labeled image", rare,
                      "expect their IoU to differ much between splits and seeds")  # fmt: skip


def _ignored(s: Survey) -> Iterator[Finding]:
    for part in ("labeled", "val"):
        bad = tuple(f.key for f in s.of(part) if f.counts is not None and f.counts[IGNORE] == f.counts.sum() > 0)
        if bad and not _binary(s):
            yield Finding("warning", f"{_n(bad, 'mask')} of {part} images with nothing but {IGNORE} (ignore)", bad,
                          "nothing is learned or measured from them")  # fmt: skip


def _n(items: Sized, singular: str, plural: str = "") -> str:
    count = len(items)
    return f"{count} {singular if count == 1 else plural or singular + 's'}"


def _are(items: Sized) -> str:
    return "is" if len(items) == 1 else "are"


def _by(size: tuple[int, int] | None) -> str:
    return f"{size[0]} x {size[1]}" if size else "?"


_RULES: tuple[Callable[[Survey], Iterator[Finding]], ...] = (
    _lists,
    _unreadable,
    _troubled("unreadable", "cannot be read", "replace the files, or treat the images as unlabeled"),
    _troubled("color", "with colors instead of class ids", "save class ids 0, 1, 2, ... as 8-bit gray or palette PNG"),
    _troubled("deep", "of a type other than 8 bits", "save class ids as 8-bit gray or palette PNG"),
    _outside, _trap, _missing, _strays, _sizes, _twins, _modes, _tiny, _classes, _ignored, _amounts,
)  # fmt: skip
