"""A few-shot curve: trainings on a few images a class, with several draws of each number of shots."""

from rich.console import Console

from clipcovid.config import override
from clipcovid.data.manifest import read_manifest
from clipcovid.evaluate.console import print_shots
from clipcovid.evaluate.scores import Scores
from clipcovid.identity import run_identity
from clipcovid.io.files import write_json
from clipcovid.methods.checkpoints import save_texts
from clipcovid.methods.configs import FewShotConfig
from clipcovid.runs import Run, finish_run, start_run
from clipcovid.terminal import Countdown
from clipcovid.tracking.datasets import TRAINING_SPLITS, describe_data
from clipcovid.tracking.runs import live_tracker
from clipcovid.training.trainer import train_model, training_manifest
from clipcovid.workflows.register import refuse_register_flag
from clipcovid.workflows.report import ChildRun, report_run
from clipcovid.workflows.train import embeddings_for

DRAWS_PER_SHOT = 3  # of the images of each number of shots


def few_shot(config: FewShotConfig) -> Run:
    """A training for each number of shots and draw; their test scores and the curve in a run of its own.

    The trainings take a second each, so they run in this process unless `compute.workers` says otherwise.
    """
    from clipcovid.evaluate import plots  # matplotlib: other trainings start without it

    refuse_register_flag(config, "A curve of several --shots")
    source = read_manifest(config.data)
    manifest, embeddings = training_manifest(config, source), embeddings_for(config, source)
    run = start_run(config, method=f"{config.task}-curve", identity=run_identity(config, manifest), job="few-shot")
    config = save_texts(config, manifest.classes, run.folder)
    if config.compute.workers is None:
        config = override(config, {"compute.workers": 0})
    draws = [(shots, draw) for shots in config.shots for draw in range(1 if shots == "all" else DRAWS_PER_SHOT)]
    scores, children, countdown = dict[str, Scores](), list[ChildRun](), Countdown("training", len(draws))
    with live_tracker(config, describe_data(manifest, config.data, TRAINING_SPLITS)) as watch:
        watch(run)
        for done, (shots, draw) in enumerate(draws, 1):
            single = override(config, {"shots": (shots,), "draw": draw, "name": ""})
            placed = override(single, {"out": run.folder / "runs"})
            trained = train_model(placed, manifest=source, embeddings=embeddings, log=lambda text: None)
            scores[f"{shots}-shot-{draw}"] = trained.scores
            children.append(ChildRun(run=trained.run, config=single))
            print(countdown.line(done, f"{shots} shots", f"accuracy {trained.scores.metrics['accuracy']:.3f}"))
    curve = [{"shots": name.partition("-")[0]} | entry.metrics for name, entry in scores.items()]
    write_json(run.folder / "metrics.json", {name: entry.to_json() for name, entry in scores.items()})
    plots.save_figures({"shots": plots.few_shot_figure(curve)}, run.folder / "figures")
    finish_run(run)
    print_shots(curve, Console())
    report_run(run, config, manifest=manifest, children=children)
    return run
