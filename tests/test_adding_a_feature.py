import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "adding-a-feature.md"
FILE = re.compile(r"^```\w+ ([\w./]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COPIED = ["migrations", "src", "tests", "setup.cfg", "pyproject.toml", "wsgi.py"]
NO_REQUEST = "forbidden_modules =\n    flask\n"

# What the document says about files that are there already, in words.
EDITS = [
    ("src/project/api.py", "PREFIX =", "from project.notes.routes import blueprint as notes\n\nPREFIX ="),
    ("src/project/api.py", "list[Blueprint] = [", "list[Blueprint] = [notes, "),
    ("setup.cfg", "project.users.routes", "project.users.routes : project.notes.routes"),
    ("setup.cfg", "project.users.service", "project.users.service : project.notes.service"),
    ("setup.cfg", "project.users.schemas", "project.users.schemas : project.notes.schemas"),
    ("setup.cfg", "project.users.models", "project.users.models : project.notes.models"),
    ("setup.cfg", NO_REQUEST, f"    project.notes.service\n    project.notes.models\n{NO_REQUEST}"),
]


@pytest.fixture
def copy(tmp_path):
    """The project with the feature of the document added to it."""
    root = tmp_path / "project"
    root.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, root / name)
    for name, content in FILE.findall(DOCUMENT.read_text()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / "src/project/notes/__init__.py").touch()
    for name, old, new in EDITS:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))
    return root


def run(root, command, *arguments):
    """Run a command of the environment in the copy and return what it printed; it must succeed."""
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(root / "src"),
        "APP_ENV": "testing",
        "DATA_DIR": str(root / "instance"),
        "FLASK_APP": "wsgi:app",
        "FLASK_SKIP_DOTENV": "1",
    }
    program = Path(sys.executable).with_name(command)
    result = subprocess.run([program, *arguments], cwd=root, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_feature_of_the_document_works(copy):
    run(copy, "flask", "db", "upgrade")
    run(copy, "flask", "db", "migrate", "-m", "notes")
    run(copy, "ruff", "check", "--no-cache", "src/project/notes", "tests/notes")
    run(copy, "lint-imports", "--no-cache")
    printed = run(copy, "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-k", "sqlite", "tests/notes")
    assert re.search(r"^\d+ passed", printed, re.MULTILINE)
