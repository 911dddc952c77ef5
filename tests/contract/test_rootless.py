"""Run the rootless drivers' suite and the adversary as nobody, when the tests run as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534
TESTS = "tests/contract/test_drivers.py::TestRootless tests/acceptance/isolation"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("unshare"),
    reason="needs root, setpriv and unshare to become an ordinary user",
)


@pytest.fixture
def stage() -> Iterator[Path]:
    """A place that an ordinary user can enter, with a venv whose files are bound below it."""
    with tempfile.TemporaryDirectory(prefix="hfr") as name:
        path = Path(name)
        path.chmod(0o755)
        for part in ("py", "site", "repo", "tmp", "venv/bin"):
            (path / part).mkdir(parents=True)
        (path / "tmp").chmod(0o1777)
        binary = Path(sys.executable).resolve().name
        (path / "venv/pyvenv.cfg").write_text(f"home = {path}/py/bin\ninclude-system-site-packages = false\n")
        (path / "venv/bin/python").symlink_to(path / "py/bin" / binary)
        library = path / "venv" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
        library.parent.mkdir(parents=True)
        library.symlink_to(path / "site")
        yield path


@pytest.mark.timeout(180)
def test_the_suite_holds_for_an_ordinary_user(stage: Path) -> None:
    binds = {"py": sys.base_prefix, "site": sysconfig.get_path("purelib"), "repo": str(REPOSITORY)}
    script = " && ".join(f"mount --rbind {source} {stage}/{part}" for part, source in binds.items())
    become = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --inh-caps=-all --no-new-privs"
    pytest_line = f"{stage}/venv/bin/python -m pytest -q --show-capture=no -p no:cacheprovider {TESTS}"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/",
        "TMPDIR": f"{stage}/tmp",
        "LD_LIBRARY_PATH": f"{stage}/py/lib",
        "PYTHONDONTWRITEBYTECODE": "1",
        **{name: value for name, value in os.environ.items() if name == "HYPERFACTORY_ISOLATION_TABLE"},
    }
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{script} && cd {stage}/repo && exec {become} {pytest_line}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
