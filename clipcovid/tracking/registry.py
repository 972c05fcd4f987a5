"""A run's model in MLflow's registry: weights, code, signature, example, requirements, scores and the data behind them."""

import base64
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import clipcovid
from clipcovid.config import RESEARCH_ONLY, RunConfig, UserError, override, summarize_error
from clipcovid.identity import checkpoint_hash, digest
from clipcovid.inference.export_model import check_exportable, export_model
from clipcovid.inference.predict_zeroshot import is_zeroshot_run, zeroshot_clip
from clipcovid.inference.zeroshot import ZeroshotConfig
from clipcovid.io.files import read_json_object
from clipcovid.methods.checkpoints import PROMPTS, read_checkpoint
from clipcovid.prompts import PromptsConfig
from clipcovid.runs import STORE_FILE, Run, read_run_metadata
from clipcovid.tracking import runs
from clipcovid.tracking.datasets import CONTEXT_TAG
from clipcovid.tracking.runs import log_metrics
from clipcovid.tracking.store import check_store, hide_password, make_client, tracking_uri

MODEL_TAG = "clipcovid.model"  # of a version: the hash of what it predicts with
RESERVED_ALIASES = r"latest|v\d+"
EXAMPLE_SIZE = 128  # pixels: the example is stored with every version
CHECK_SCRIPT = """
import json, sys
import mlflow
from mlflow.models import Model
example = Model.load(sys.argv[1]).load_input_example(sys.argv[1])
answer = mlflow.pyfunc.load_model(sys.argv[1]).predict(example)
modules = sorted({name.partition(".")[0] for name, module in sys.modules.items() if module})
print(json.dumps({"rows": len(answer), "modules": modules}))
"""


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """A version of a registered model."""

    name: str
    version: str
    store: str
    """The tracking store's URI, without a password."""
    created: bool
    """False where this very model had been registered before."""

    @property
    def uri(self) -> str:
        """What MLflow loads it by."""
        return f"models:/{self.name}/{self.version}"

    def serve_command(self, alias: str = "") -> str:
        """What to type to serve it, by its alias where it has one."""
        uri = f"models:/{self.name}@{alias}" if alias else self.uri
        command = f"mlflow models serve --model-uri {shlex.quote(uri)} --env-manager local --port 5001"
        return f"MLFLOW_TRACKING_URI={shlex.quote(self.store)} {command}"


def check_registration(name: str, alias: str = "") -> None:
    """Refuse names and aliases that the registry does not take: `UserError`."""
    if not name.strip() or re.search(r"[/:]", name) or name in (".", ".."):
        raise UserError(f"A model can't be registered as {name!r}: give a name without / and :.")
    if alias and (not re.fullmatch(r"[\w\-]+", alias) or re.fullmatch(RESERVED_ALIASES, alias, re.IGNORECASE)):
        raise UserError(
            f"--alias {alias!r} must be of letters, digits, _ and -, and neither latest nor a version such as v2."
        )


def register_run(run: Path, name: str, *, alias: str = "", out: Path | None = None) -> RegisteredVersion:
    """Register the model of a finished run as `name`, and have `alias` point to it.

    `out`: where the MLflow store is; by default the folder of the run, or the nearest above it that has one. A run that was
    never shown in MLflow is shown first. One that is registered as `name` already is found again. What can't be served, and a
    store that takes nothing, is a `UserError`.
    """
    check_registration(name, alias)
    check_exportable(run)
    place = out or _nearest_store(run)
    uri = tracking_uri(place)
    try:
        check_store(uri)
        client = make_client(uri)
        tracked = _tracked_run(client, run, place)
        version = _find_version(client, name, run)
        created = version is None
        if version is None:
            version = _create_version(client, name, run, tracked)
        if alias:
            client.set_registered_model_alias(name, alias, version)
    except UserError:
        raise
    except Exception as error:  # of MLflow, its store, and its artifacts
        raise UserError(
            f"MLflow at {hide_password(uri)} did not take {run} as {name} ({summarize_error(error)}): the run is whole; "
            "run clipcovid register again."
        ) from error
    return RegisteredVersion(name=name, version=str(version), store=hide_password(uri), created=created)


def _nearest_store(run: Path) -> Path:
    """The folder, of those above the run, that has the MLflow store."""
    places = run.resolve().parents
    found = [place for place in places if (place / STORE_FILE).is_file()]
    if not found and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(f"No folder above {run} has an {STORE_FILE}: give --out the folder that has, or is to have it.")
    return found[0] if found else places[0]


def _tracked_run(client: Any, folder: Path, out: Path) -> Any:
    """MLflow's run of a run folder, in the store of `out`; one that it does not know is shown now."""
    run, store = _read_run(folder), hide_password(tracking_uri(out))
    if found := runs.find_run(client, run):
        return found
    if is_zeroshot_run(folder):
        settings = read_run_metadata(folder)["config"]
        prompts = PromptsConfig(prompts=str(folder / PROMPTS))
        clip, data = zeroshot_clip(folder), Path(settings["data"])
        config: RunConfig = ZeroshotConfig(data=data, clip=clip, input=settings["input"], prompts=prompts, out=out)
    else:
        config = override(read_checkpoint(folder)[0], {"out": out})
    if runs.track(run, config, tags={}) and (found := runs.find_run(client, run)):
        return found
    raise UserError(f"MLflow at {store} did not take {folder}, as the warning above says: register it again.")


def _read_run(folder: Path) -> Run:
    """The run in a folder, as the job that wrote it named it."""
    stored = read_run_metadata(folder)
    job = "zeroshot" if is_zeroshot_run(folder) else "train"
    return Run(folder=folder.resolve(), method=stored["method"], identity=stored["identity"], job=job)


def _model_hash(folder: Path) -> str:
    """Of all that the model predicts with, and of the code's version."""
    stored = read_run_metadata(folder)
    checkpoint = "" if is_zeroshot_run(folder) else checkpoint_hash(read_checkpoint(folder)[2])
    return digest([stored["identity"], checkpoint, clipcovid.__version__])


def _find_version(client: Any, name: str, folder: Path) -> str | None:
    """The newest version of `name` that is this very model."""
    wanted, versions = _model_hash(folder), client.search_model_versions(f"name = '{name.replace(chr(39), '')}'")
    same = [int(version.version) for version in versions if version.tags.get(MODEL_TAG) == wanted]
    return str(max(same)) if same else None


def _create_version(client: Any, name: str, folder: Path, tracked: Any) -> str:
    """Package the model, try it in a process of its own, upload it, and register it; its version."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    run_id, run = tracked.info.run_id, _read_run(folder)
    tags = {"clipcovid.run": run.name, "clipcovid.method": run.method, MODEL_TAG: _model_hash(folder)}
    logged = client.create_logged_model(
        tracked.info.experiment_id,
        name=re.sub(r"[/:.%\"']", "-", run.name),
        source_run_id=run_id,
        tags=tags,
        params=tracked.data.params,
        model_type=run.method,
    )
    status = LoggedModelStatus.FAILED
    try:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "model"
            _save_model(folder, path, logged)
            client.log_model_artifacts(logged.model_id, str(path))
        status = LoggedModelStatus.READY
    finally:
        client.finalize_logged_model(logged.model_id, status)
    step = _best_epoch(folder)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
    _log_model_metrics(client, tracked, logged.model_id, step)
    _ensure_registered_model(client, name)
    version = client.create_model_version(
        name,
        logged.artifact_location,  # "models:/…" would be looked up in MLflow's global store
        run_id,
        tags=tags,
        description=tracked.data.tags.get(runs.NOTE_TAG, RESEARCH_ONLY),
        model_id=logged.model_id,
    )
    link = json.dumps([{"name": name, "version": str(version.version)}])
    client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": link})  # by which its page finds the version
    return str(version.version)


def _save_model(run: Path, path: Path, logged: Any) -> None:
    """Write the model's folder: MLflow's files, our code and the weights; it must answer in a fresh process."""
    import mlflow
    from mlflow.models import Model, ModelSignature, update_model_requirements
    from mlflow.types import ColSpec, Schema

    with tempfile.TemporaryDirectory() as weights:
        export_model(run, Path(weights) / "model")
        outputs = _output_columns(run)
        mlflow.pyfunc.save_model(
            path,
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"model": str(Path(weights) / "model")},
            code_paths=[str(Path(clipcovid.__file__).parent)],
            signature=ModelSignature(
                Schema([ColSpec("string", "image")]),
                Schema([ColSpec(kind, column) for column, kind in outputs.items()]),
            ),
            input_example=_example(),
            pip_requirements=[f"mlflow=={metadata.version('mlflow')}"],
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
                run_id=logged.source_run_id,
            ),
        )
    update_model_requirements(str(path), "add", pinned_requirements(_try_model(path)))


def _output_columns(run: Path) -> dict[str, str]:
    """Column → MLflow's type of what the model answers."""
    if is_zeroshot_run(run):
        return _class_columns(list(read_json_object(run / PROMPTS)))
    config, checkpoint, _ = read_checkpoint(run)
    regions = getattr(config, "regions", None)
    if regions is None:
        return _class_columns(checkpoint["classes"])
    return {f"{region}_{part}": kind for region in regions for part, kind in (("mask", "string"), ("share", "double"))}


def _class_columns(classes: Sequence[str]) -> dict[str, str]:
    return {"predicted": "string"} | {f"prob_{name}": "double" for name in classes}


def _example() -> Any:
    """One request: a drawn X-ray, for no patient's image goes into a registry by itself."""
    import pandas as pd
    from PIL import Image

    from clipcovid.data.phantoms import draw_phantom  # SciPy: trainings, which may register, start without

    file = BytesIO()
    Image.fromarray(draw_phantom(0, size=EXAMPLE_SIZE).image).save(file, "PNG")
    return pd.DataFrame({"image": [base64.b64encode(file.getvalue()).decode()]})


def _try_model(path: Path) -> list[str]:
    """The modules that a fresh process imported to load the model and answer its example; if it can't: RuntimeError.

    It sees neither the working directory nor PYTHONPATH, and so takes our code from the model.
    """
    done = subprocess.run(
        [sys.executable, "-IB", "-c", CHECK_SCRIPT, str(path)], cwd=path, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the packaged model does not answer: {done.stderr.strip().splitlines()[-1]}")
    modules: list[str] = json.loads(done.stdout.splitlines()[-1])["modules"]
    return modules


def pinned_requirements(modules: Sequence[str]) -> list[str]:
    """`name==version` of the packages that clipcovid asks for and that have any of these modules, as they are installed.

    Local labels of versions, as in 2.9+cpu, are left out: an index does not have them.
    """
    wanted = {
        re.split(r"[^\w.\-]", line, maxsplit=1)[0].lower().replace("_", "-")
        for line in metadata.requires("clipcovid") or []
        if "extra ==" not in line
    }
    owners = metadata.packages_distributions()
    used = {name for module in modules for name in owners.get(module, ())}
    return sorted(
        f"{name}=={metadata.version(name).partition('+')[0]}"
        for name in used
        if name.lower().replace("_", "-") in wanted
    )


def _best_epoch(folder: Path) -> int:
    """The epoch whose weights were kept, 0 for what is not trained."""
    history = folder / "history.json"
    return int(json.loads(history.read_text(encoding="utf-8"))["best_epoch"]) if history.exists() else 0


def _log_model_metrics(client: Any, tracked: Any, model_id: str, step: int) -> None:
    """Give the model its run's scores with the data sets that they are of, and the numbers of the epoch that was kept."""
    from mlflow.entities import Metric

    datasets = {
        tag.value: used.dataset
        for used in (tracked.inputs.dataset_inputs if tracked.inputs else [])
        for tag in used.tags
        if tag.key == CONTEXT_TAG
    }
    metrics = []
    for name in tracked.data.metrics:
        dataset = datasets.get(name.partition("/")[0])
        for point in client.get_metric_history(tracked.info.run_id, name):
            if point.step == (0 if dataset else step):
                where = {"dataset_name": dataset.name, "dataset_digest": dataset.digest} if dataset else {}
                values = (point.key, point.value, point.timestamp, point.step)
                metrics.append(Metric(*values, model_id=model_id, run_id=tracked.info.run_id, **where))
    log_metrics(client, tracked.info.run_id, metrics)


def _ensure_registered_model(client: Any, name: str) -> None:
    """Make the entry of the registry that has the versions, where there is none."""
    from mlflow.exceptions import MlflowException

    about = f"Models of chest X-rays by clipcovid. {RESEARCH_ONLY} Input: a column `image` of image files in base64."
    try:
        client.create_registered_model(name, description=about)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
