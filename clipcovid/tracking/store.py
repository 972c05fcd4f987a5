"""The tracking store: where it is, whether it answers, and a client of it."""

import logging
import os
import re
import socket
import sqlite3
import ssl
import sys
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipcovid import environment
from clipcovid.config import summarize_error
from clipcovid.runs import STORE_FILE

STORE_TIMEOUT_S = 4.0  # seconds in which a tracking store has to answer
EXPERIMENT = "clipcovid"
UI_ADDRESS = "http://127.0.0.1:5000"  # where `mlflow ui` listens
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_failed_stores: set[str] = set()  # stores of which this process has said that they take no runs


def tracking_uri(out: Path) -> str:
    """The tracking URI: MLFLOW_TRACKING_URI, else an sqlite file in `out`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or local_store(out)
    if uri.startswith("sqlite:///"):  # a worker, who stands elsewhere, has to find it too
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    return uri


def local_store(out: Path) -> str:
    """The URI of the sqlite file in `out`."""
    return f"sqlite:///{(out / STORE_FILE).resolve()}"


def ui_command(out: Path) -> str:
    """What to type to see the runs."""
    return f"mlflow ui --backend-store-uri {tracking_uri(out)}"


def ui_page(out: Path) -> str:
    """The page of the runs, where `ui_command` serves a database; "" for a server, whose experiments are not asked for.

    Since MLflow 3.17 the page's view is the browser's choice, GenAI at first, whatever the experiment's tag says.
    """
    path = Path(tracking_uri(out).removeprefix("sqlite:///"))
    if not path.is_file():
        return ""
    with closing(sqlite3.connect(path, timeout=STORE_TIMEOUT_S)) as database:
        found = database.execute("SELECT experiment_id FROM experiments WHERE name = ?", (EXPERIMENT,)).fetchone()
    return f"{UI_ADDRESS}/#/experiments/{found[0]}?workflowType=machine_learning" if found else ""


def check_store(uri: str) -> None:
    """Raise OSError, in seconds and without MLflow, where the tracking store at `uri` can't be used.

    MLflow itself would ask such a store again and again for minutes.
    """
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if kind == "sqlite":
        _check_sqlite(Path(parts.path.removeprefix("/")))
    elif kind in ("http", "https"):
        unverified = ssl._create_unverified_context() if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS") else None
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=STORE_TIMEOUT_S, context=unverified).close()
        except urllib.error.HTTPError:
            pass  # it answers, and what it wants MLflow knows
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLError):  # MLflow has settings for certificates
                raise OSError(str(error.reason)) from error
    elif kind in PORTS and parts.hostname:
        socket.create_connection((parts.hostname, parts.port or PORTS[kind]), timeout=STORE_TIMEOUT_S).close()


def _check_sqlite(path: Path) -> None:
    """Raise OSError where the database can't be written, or the file to be."""
    if not path.parent.is_dir():
        raise OSError(f"there is no folder {path.parent}")
    try:
        with closing(sqlite3.connect(path, timeout=STORE_TIMEOUT_S)) as database:
            database.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        if "locked" not in str(error):  # by another job, for a moment
            raise OSError(f"{path}: {error}") from error


def warn_unavailable(uri: str, error: Exception) -> None:
    """Say once that the store took no run, and why."""
    if uri not in _failed_stores:
        _failed_stores.add(uri)
        why = summarize_error(error)[:200]
        print(f"warning: MLflow at {hide_password(uri)} did not take the run ({why}).", file=sys.stderr)


def hide_password(uri: str) -> str:
    """A store's URI without the user and password in it."""
    return re.sub(r"//[^/@]*@", "//", uri)


def make_client(uri: str) -> Any:
    """A client of the store at `uri`; imports MLflow, which takes seconds."""
    environment.set_defaults(environment.MLFLOW_DEFAULTS)
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow", "urllib3"):  # after the import, which sets them anew; errors are raised
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)
