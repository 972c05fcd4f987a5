"""What is public of what encoders were trained on, and of the data sets: the one place for such facts, with their sources.

To add an encoder or a data set is to add an entry. What is not stated by its makers is left out, and stays unknown.
"""

import dataclasses
import re
from collections.abc import Iterable

from clipcovid.errors import UserError

NO_CUTOFF_YEAR = 9999  # the year of a training set whose end is not known


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicSet:
    """A public data set of chest X-rays."""

    name: str
    pattern: str
    """Regular expression, found anywhere in the names of sources and data sets, whatever their case."""
    released: int
    """The year in which its images were first public."""
    reference: str
    made_from: tuple[str, ...] = ()
    """Public sets that it has images of."""

    def matches(self, text: str) -> bool:
        """Whether a name is this data set's."""
        return re.search(self.pattern, text, re.IGNORECASE) is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderFacts:
    """What is public about the training data of one encoder, or of several with the same data."""

    pattern: str
    """Regular expression, found anywhere in MODEL:WEIGHTS, whatever its case. The first entry that matches counts."""
    training_note: str
    """A sentence, without its point."""
    reference: str
    training_sets: tuple[str, ...] = ()
    """Public sets that were in its training data."""
    excluded_sets: tuple[str, ...] = ()
    """Public sets that were not, though they are older than it is."""
    cutoff_year: int = NO_CUTOFF_YEAR
    """The last year of its training data: sets that were released later it can't have seen."""

    def matches(self, encoder: str) -> bool:
        """Whether a name is this encoder's."""
        return re.search(self.pattern, encoder, re.IGNORECASE) is not None


PUBLIC_SETS = (
    PublicSet(
        name="nih-chestxray14",
        pattern=r"\bnih|chest-?x-?ray-?(8|14)\b|nih14|rsna",
        released=2017,
        reference="Wang et al., CVPR 2017; the RSNA pneumonia challenge (2018) has images of it",
    ),
    PublicSet(name="chexpert", pattern="chexpert", released=2019, reference="Irvin et al., AAAI 2019"),
    PublicSet(name="mimic-cxr", pattern="mimic", released=2019, reference="Johnson et al., Scientific Data 6, 2019"),
    PublicSet(name="padchest", pattern="padchest", released=2019, reference="Bustos et al., Med. Image Anal. 66, 2020"),
    PublicSet(
        name="iu-xray", pattern=r"iu-?x-?ray|open-?i\b", released=2015, reference="Demner-Fushman et al., JAMIA 2016"
    ),
    PublicSet(
        name="kermany",
        pattern="kermany|chest-?xray-?pneumonia|guangzhou",
        released=2018,
        reference="Kermany et al., Cell 2018",
    ),
    PublicSet(
        name="cohen",
        pattern=r"\bcohen|covid-?chestxray|covid-19 image data collection",
        released=2020,
        reference="Cohen et al., arXiv 2006.11988",
    ),
    PublicSet(
        name="bimcv-covid19", pattern="bimcv", released=2020, reference="de la Iglesia Vayá et al., arXiv 2006.01174"
    ),
    PublicSet(
        name="covidx",
        pattern="covidx",
        released=2020,
        reference="Wang et al., Scientific Reports 10, 2020",
        made_from=("cohen", "nih-chestxray14"),
    ),
    PublicSet(
        name="covid-qu-ex",
        pattern=r"covid-?qu-?ex|\bquex\b",
        released=2021,
        reference="Tahir et al., Computers in Biology and Medicine 139, 2021",
        made_from=("cohen", "nih-chestxray14", "kermany", "padchest", "bimcv-covid19"),
    ),
    PublicSet(name="phantoms", pattern=r"^phantom", released=NO_CUTOFF_YEAR + 1, reference="drawn by clipcovid"),
)


def check_public_sets(names: Iterable[str]) -> None:
    """Refuse, as a `UserError`, a name that is none of `PUBLIC_SETS`."""
    known = [one.name for one in PUBLIC_SETS]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--contains {unknown[0]} is unknown: use {', '.join(known)}.")


_WEB = "It was trained on pictures and texts of the web, a collection that"
ENCODERS = (
    EncoderFacts(
        pattern="rad-?dino",
        training_note="It was trained on MIMIC-CXR, CheXpert, NIH ChestX-ray14, PadChest and BRAX, from DINOv2",
        reference="Pérez-García et al., Nature Machine Intelligence 7, 2025",
        training_sets=("mimic-cxr", "chexpert", "nih-chestxray14", "padchest"),
    ),
    EncoderFacts(
        pattern="biomedclip",
        training_note="It was trained on 15 million figures of PubMed Central's articles, which may show public sets' images",
        reference="Zhang et al., arXiv 2303.00915",
    ),
    EncoderFacts(
        pattern="pubmed-?clip",
        training_note="It was trained on ROCO, figures of articles in PubMed Central up to 2018, from OpenAI's CLIP of 2021",
        reference="Eslami et al., Findings of EACL 2023",
    ),
    EncoderFacts(
        pattern="biovil|cxr-?bert",
        training_note="It was trained on MIMIC-CXR and the texts of PubMed, from ImageNet",
        reference="Boecking et al., ECCV 2022; Bannur et al., CVPR 2023",
        training_sets=("mimic-cxr",),
        excluded_sets=tuple(one.name for one in PUBLIC_SETS if one.name != "mimic-cxr"),
    ),
    EncoderFacts(
        pattern="medclip",
        training_note="It was trained on MIMIC-CXR and CheXpert",
        reference="Wang et al., EMNLP 2022",
        training_sets=("mimic-cxr", "chexpert"),
    ),
    EncoderFacts(
        pattern="chexzero",
        training_note="It was trained on MIMIC-CXR, from OpenAI's CLIP",
        reference="Tiu et al., Nature Biomedical Engineering 6, 2022",
        training_sets=("mimic-cxr",),
    ),
    EncoderFacts(
        pattern="medsiglip",
        training_note="It was trained on MIMIC-CXR among other medical images, from SigLIP",
        reference="Sellergren et al., arXiv 2507.05201",
        training_sets=("mimic-cxr",),
    ),
    EncoderFacts(
        pattern="dinov2|lvd142m",
        training_note=f"{_WEB} was not published (LVD-142M)",
        reference="Oquab et al., arXiv 2304.07193",
    ),
    EncoderFacts(
        pattern="webli|siglip",
        training_note=f"{_WEB} was not published (WebLI)",
        reference="Zhai et al., ICCV 2023",
    ),
    EncoderFacts(
        pattern="laion|datacomp|commonpool|metaclip|dfn|yfcc|cc12m",
        training_note=f"{_WEB} is a list of addresses, which nobody has searched for these images",
        reference="Schuhmann et al., NeurIPS 2022; Gadre et al., NeurIPS 2023",
    ),
    EncoderFacts(
        pattern=r"openai|clip-vit",
        training_note=f"{_WEB} was not published (WIT)",
        reference="Radford et al., ICML 2021",
    ),
    EncoderFacts(
        pattern=r"(?<!ft_)in(1|12|21|22)k|^((tv_)?resnet|densenet|vgg|wide_resnet)\w*(:(pretrained|imagenet))?$",
        training_note="It was trained on ImageNet's photographs, which were collected up to 2012",
        reference="Russakovsky et al., IJCV 115, 2015",
        cutoff_year=2012,
    ),
)
"""The first whose pattern matches counts: encoders that began with others stand before those."""
