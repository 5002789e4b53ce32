"""Running one notebook with papermill: the executed copy is there only if everything finished."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from dalle3lib import UserError, config, fingerprint, paths, runs
from dalle3lib.files import guard


def run_notebook(notebook: str, given: dict[str, Any], out: Path | None = None) -> Path:
    """Execute a notebook with the given parameters and return the executed copy's path.

    The copy appears under its name only when every cell and the run itself finished; a failed
    one stays beside it as ``….failed.ipynb``. Raises UserError saying what failed.
    """
    cfg = config.from_preset(notebook, **given)
    run = cfg.root / notebook / runs.run_id(cfg, *fingerprint.identity_names(notebook))
    name = notebook if run.name == "main" else f"{notebook}--{run.name}"
    out = (out or cfg.root / "notebooks" / f"{name}.ipynb").absolute()
    failed = out.with_suffix(".failed.ipynb")
    unfinished = out.with_name(f".{out.stem}.{os.getpid()}.ipynb")
    print(f"{name}: started", flush=True)
    if runs.busy(run):
        print(f"{name}: waiting for another process that works on {run}", flush=True)
    began = time.time()
    with guard(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            _execute(notebook, {name: cfg.values[name] for name in given}, unfinished, began)
            if not _finished_since(run, began):
                raise UserError(f"Notebook {notebook} ended before its run was finished.")
            os.replace(unfinished, out)
            failed.unlink(missing_ok=True)
        except UserError:
            out.unlink(missing_ok=True)
            if unfinished.exists():
                os.replace(unfinished, failed)
                print(f"{name}: failed, see {failed}", file=sys.stderr)
            raise
        finally:
            unfinished.unlink(missing_ok=True)
    print(f"{name}: finished in {time.time() - began:.0f} s", flush=True)
    return out


def _execute(notebook: str, given: dict[str, Any], out: Path, began: float) -> None:
    """Run papermill in a kernel that started at ``began``; UserError saying why it failed."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    private = paths.runs_dir() / ".cache"  # instead of dot files in the user's home
    for variable, name in (("IPYTHONDIR", "ipython"), ("MPLCONFIGDIR", "matplotlib")):
        (private / name).mkdir(parents=True, exist_ok=True)
        os.environ.setdefault(variable, str(private / name))
    os.environ["DALLE3_STARTED"] = str(began)
    source = config.notebook_path(notebook)
    try:
        papermill.execute_notebook(
            source,
            out,
            given,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=paths.ROOT,
            start_timeout=300,  # seconds; two jobs may start while the machine is busy
            extra_arguments=["--log-level=50", "--ext=dalle3lib.figure_data"],
        )
    except papermill.PapermillExecutionError as error:
        said = f"{error.ename} in notebook {notebook}: {error.evalue}"
        raise UserError(error.evalue if error.ename == "UserError" else said) from None
    except DeadKernelError:
        raise UserError(f"The kernel of {notebook} died (out of memory?).") from None
    finally:
        del os.environ["DALLE3_STARTED"]


def _finished_since(run: Path, began: float) -> bool:
    """Whether a run is complete and was finished after a moment (seconds since the epoch)."""
    try:
        return runs.load(run)["finished"] >= runs.utc(began)
    except UserError:
        return False
