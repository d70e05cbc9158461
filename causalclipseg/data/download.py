"""QaTa-COV19's pictures and masks from Kaggle, through kagglehub."""
from __future__ import annotations

import os
import shutil
from pathlib import Path

from .._files import check_new_folder, put_in_place
from .tables import DataError

DATA_SET = "aysendegerli/qatacov19-dataset"
TOKEN_FILES = ("kaggle.json", "access_token")
HOW = (
    "There is no Kaggle token: make one on kaggle.com (Settings, API), then set KAGGLE_USERNAME and KAGGLE_KEY, or "
    "KAGGLE_API_TOKEN, or put kaggle.json into ~/.kaggle; in Colab, add them as secrets. "
)
IN_A_BROWSER = f"Or download kaggle.com/datasets/{DATA_SET} in a browser and unpack it."


def download(directory) -> Path:
    """Fetch QaTa-COV19 (pictures and masks; Kaggle has no sentences) and put it into a folder.

    Args:
        directory: made if it is missing; must be empty otherwise.
    Returns:
        the folder.
    Raises:
        DataError: the folder is in use, kagglehub is missing or the download failed; with what to do. A token is not
            asked for beforehand: Kaggle's own notebooks have none, and kagglehub may find one elsewhere.
    """
    try:
        directory = check_new_folder(directory)
    except ValueError as error:
        raise DataError(str(error)) from None
    _token_from_colab()
    try:
        import kagglehub
    except ImportError:
        raise DataError("kagglehub is not installed; run `pip install kagglehub`.") from None
    try:
        fetched = Path(kagglehub.dataset_download(DATA_SET))
    except Exception as error:  # kagglehub raises its own kinds, those of requests and plain ones
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        advice = "Check the network, and that the token is still good. " if _has_token() else HOW
        raise DataError(f"Kaggle did not give the data set ({reason}). {advice}{IN_A_BROWSER}") from error
    beside = directory.with_name(directory.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        shutil.copytree(fetched, beside)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)  # a full disk would stay full
        raise
    put_in_place(beside, directory)
    return directory


def _has_token() -> bool:
    env = os.environ
    named = (env.get("KAGGLE_USERNAME") and env.get("KAGGLE_KEY")) or env.get("KAGGLE_API_TOKEN")
    folder = Path(env.get("KAGGLE_CONFIG_DIR") or "~/.kaggle").expanduser()
    return bool(named) or any((folder / name).is_file() for name in TOKEN_FILES)


def _token_from_colab() -> None:
    """In Colab, what is kept as a secret and shared with the notebook goes where kagglehub looks."""
    try:
        from google.colab import userdata
    except ImportError:
        return
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        if name not in os.environ:
            try:
                os.environ[name] = userdata.get(name)
            except Exception:  # no such secret, or the notebook may not read it
                pass
