"""Whether an encoder has seen a data set before: clean, unknown or contaminated, and unknown unless something says more.

Of runs of ours the checkpoints keep the pixels' hashes of what they learned from, so those are compared image by image. Of
published encoders only what their makers say is known: see `encoder_facts`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import numpy as np

from clipcovid.audit.config import AuditConfig
from clipcovid.audit.data import AuditData, PreparedSet
from clipcovid.audit.encoder_facts import ENCODERS, PUBLIC_SETS, EncoderFacts, PublicSet, check_public_sets
from clipcovid.audit.examples import example_sheets
from clipcovid.data.training_images import read_run_identity, read_training_images, seen_in_training
from clipcovid.errors import UserError
from clipcovid.evaluate.number_format import format_count
from clipcovid.evaluate.text_table import TextTable
from clipcovid.models.availability import close_matches, is_timm_architecture, timm_names
from clipcovid.models.weight_detection import open_clip_configs
from clipcovid.report.findings import Finding

Status = Literal["clean", "unknown", "contaminated"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contamination:
    """What is known of one encoder and one data set."""

    encoder: str
    status: Status
    reason: str
    """A sentence, with its source."""
    seen_rows: tuple[int, ...] = ()
    """Positions in the data set's table of images that it is known to have learned from."""


def check_contamination(data: AuditData, config: AuditConfig) -> list[Finding]:
    """A finding for each contaminated encoder, and one with what is known of all."""
    prepared = data.main
    origins = public_sets(prepared, config.contains)
    encoders = config.encoders or embedded_encoders(prepared.folder)
    known = [judge_contamination(name, prepared, origins) for name in encoders]
    return [*(_finding(one, prepared) for one in known if one.status == "contaminated"), _summary(known, origins)]


def public_sets(prepared: PreparedSet, names: tuple[str, ...] = ()) -> list[PublicSet]:
    """The public data sets that a prepared one has images of, with those that they were made from.

    Those that are `names` (an unknown one is a `UserError`), else those that its source, its values of the column source and
    its name point to.
    """
    check_public_sets(names)
    by_name = {one.name: one for one in PUBLIC_SETS}
    info, table = prepared.manifest.info, prepared.table
    texts = [
        info.get("recipe", {}).get("source", ""),
        *table["source"].unique(),
        prepared.manifest.dataset,
        prepared.name,
    ]
    found = list(names) or [one.name for one in PUBLIC_SETS if any(one.matches(text) for text in texts)]
    for name in found:  # grows while it is read
        found += [part for part in by_name[name].made_from if part not in found]
    return [by_name[name] for name in dict.fromkeys(found)]


def check_encoder(encoder: str) -> None:
    """Refuse, as a `UserError`, an encoder that there can't be. Models of the hub are taken as they are: nobody is asked."""
    model = encoder.partition(":")[0]
    if Path(encoder).exists() or encoder.startswith("hf-hub:"):
        return
    parent = Path(model).parent
    if model.count("/") > 1 or model.startswith(("/", ".", "~")) or (parent != Path() and parent.is_dir()):
        raise UserError(f"--encoders {encoder}: there is no such folder; name a run's folder, or org/name of the hub.")
    known = "/" in model or model == "tiny" or any(one.matches(model) for one in ENCODERS)
    if not known and model not in open_clip_configs() and not is_timm_architecture(model.partition(".")[0]):
        near = ", ".join(close_matches(model, [*open_clip_configs(), *timm_names()]))
        raise UserError(
            f"--encoders {encoder}: {model} is no model of open_clip and no architecture of timm (near it: {near}); name "
            "one, org/name of the hub, or a run's folder."
        )


def embedded_encoders(folder: Path) -> tuple[str, ...]:
    """MODEL:WEIGHTS of each encoder that a prepared folder has embeddings of."""
    from clipcovid.inference.embed import ENCODER_FILE

    files = sorted((folder / "embeddings").glob(f"*/{ENCODER_FILE}"))
    made_by = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return tuple(dict.fromkeys(f"{encoder['model']}:{encoder['weights']}" for encoder in made_by))


def judge_contamination(encoder: str, prepared: PreparedSet, origins: list[PublicSet]) -> Contamination:
    """Whether an encoder, MODEL:WEIGHTS, a hub model, a timm architecture or a run's folder, has seen a data set."""
    if _is_run(encoder):
        return _judge_run(encoder, prepared)
    if encoder.endswith(":none"):
        return Contamination(
            encoder=encoder, status="clean", reason="Its weights are random: it has learned from nothing."
        )
    facts = next((one for one in ENCODERS if one.matches(encoder)), None)
    if facts is None:
        return Contamination(encoder=encoder, status="unknown", reason="It is not known what it was trained on.")
    if not origins:
        unknown = "Which public data sets these images are of is not known (--contains)."
        why = f"{facts.training_note} ({facts.reference}). {unknown}"
        return Contamination(encoder=encoder, status="unknown", reason=why)
    return _judge_published(encoder, facts, origins)


def _judge_published(encoder: str, facts: EncoderFacts, origins: list[PublicSet]) -> Contamination:
    seen = [one.name for one in origins if one.name in facts.training_sets]
    unseen = [one for one in origins if one.name in facts.excluded_sets or one.released > facts.cutoff_year]
    told = f"{facts.training_note} ({facts.reference})."
    if seen:
        return Contamination(
            encoder=encoder, status="contaminated", reason=f"{told} This set has images of {', '.join(seen)}."
        )
    if len(unseen) == len(origins):
        names = ", ".join(f"{one.name} ({one.released})" for one in origins)
        return Contamination(encoder=encoder, status="clean", reason=f"{told} This set has images of {names}.")
    doubtful = ", ".join(one.name for one in origins if one not in unseen)
    return Contamination(encoder=encoder, status="unknown", reason=f"{told} Whether {doubtful} was in it is not known.")


def _is_run(encoder: str) -> bool:
    return Path(encoder).is_dir() and bool(read_run_identity(Path(encoder)) or read_training_images(Path(encoder)))


def _judge_run(encoder: str, prepared: PreparedSet) -> Contamination:
    """By the pixels of the test split that a run of ours learned from."""
    seen, assumed = seen_in_training(Path(encoder), prepared.manifest)
    tested = prepared.table["split"] == "test"
    images = f"the {format_count(int(tested.sum()), 'image')}"
    rows = tuple(map(int, (seen & tested).to_numpy().nonzero()[0]))
    note = f" {assumed}" if assumed else ""
    if rows:
        why = f"It learned from {len(rows):,} of {images} of the test split, by their pixels.{note}"
        return Contamination(encoder=encoder, status="contaminated", reason=why, seen_rows=rows)
    why = (
        f"It learned from none of {images} of the test split, by their pixels; what the weights that "
        f"it began with have seen is another question.{note}"
    )
    return Contamination(encoder=encoder, status="unknown", reason=why)


def _finding(known: Contamination, prepared: PreparedSet) -> Finding:
    return Finding(
        check="contaminated encoder",
        severity="high" if known.seen_rows else "medium",
        summary=f"The encoder {known.encoder} has seen images of this data set: {known.reason}",
        advice="Don't report scores of this encoder on these images, zero-shot ones least of all: take another encoder, or "
        "test on images that are younger than it is.",
        numbers={"encoder": known.encoder, "status": known.status, "test_images_seen": len(known.seen_rows)},
        examples=example_sheets(prepared, {"Test images that it learned from": np.array(known.seen_rows, np.int64)}),
    )


def _summary(known: list[Contamination], origins: list[PublicSet]) -> Finding:
    names = ", ".join(one.name for one in origins)
    of = (
        f"These images are taken to be of {names} (--contains says otherwise)"
        if names
        else "No public set was recognised"
    )
    table = TextTable(
        title="What encoders have seen",
        headers=["encoder", "status", "why"],
        sections=[[[one.encoder, one.status, one.reason] for one in known]],
        wrap_cells=True,
    )
    told = ", ".join(f"{one.encoder}: {one.status}" for one in known)
    return Finding(
        check="encoders",
        severity="info",
        summary=f"{told}. {of}." if known else f"No encoder was named, and there are no embeddings of one here. {of}.",
        advice="Name all encoders that you compare with --encoders (MODEL:WEIGHTS or a run's folder); what is unknown is not "
        "clean.",
        numbers={one.encoder: {"status": one.status, "why": one.reason} for one in known},
        tables=(table,) if known else (),
    )
