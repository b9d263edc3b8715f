"""Text is UTF-8 wherever it is read or written, whatever the locale, with or without a byte-order mark."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxpgd.datasets.untrusted import read_json
from jaxpgd.errors import InputError
from jaxpgd.experiment.config_files import load_config
from jaxpgd.experiment.studies.plan import load_study, study_text

PACKAGE = Path(__file__).parents[1] / "jaxpgd"
# a locale whose text is ASCII, and a Python that believes it
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "", "JAX_PLATFORMS": "cpu"}


def leaves_encoding_open(call: ast.Call) -> bool:
    """Whether a call reads or writes text in the encoding of the locale."""
    function, given = call.func, {keyword.arg for keyword in call.keywords}
    attribute = function.attr if isinstance(function, ast.Attribute) else ""
    name = function.id if isinstance(function, ast.Name) else ""
    if attribute in ("run", "Popen", "check_output") and {"text", "universal_newlines"} & given:
        return "encoding" not in given
    if attribute == "read_text":
        return "encoding" not in given and not call.args
    if attribute == "write_text":
        return "encoding" not in given and len(call.args) < 2
    owner = function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
    if (attribute == "open" and owner not in ("os", "archive")) or name == "open":  # bytes: numbers of the system, zip members
        place = 1 if name else 0
        modes = [k.value for k in call.keywords if k.arg == "mode"] + call.args[place : place + 1]
        binary = any(isinstance(m, ast.Constant) and "b" in str(m.value) for m in modes)
        return not binary and "encoding" not in given
    return False


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_text_file_is_opened_with_an_encoding(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    found = [f"line {call.lineno}: {ast.unparse(call)[:80]}" for call in calls if leaves_encoding_open(call)]
    assert not found, "name the encoding: utf-8-sig to read what others write, else utf-8"


def test_the_reader_sees_every_form() -> None:
    wrong = ["p.read_text()", "p.write_text(x)", "open(p)", "p.open('a+')", "open(p, mode='w')", "subprocess.run(w, text=True)"]
    right = [
        "p.read_text(encoding='utf-8')",
        "write_text(p, x)",
        "open(p, 'rb')",
        "p.open(mode='wb')",
        "os.open(p, os.O_RDONLY)",
    ]
    opened = lambda text: leaves_encoding_open(ast.parse(text, mode="eval").body)  # type: ignore[arg-type]
    assert [opened(text) for text in wrong + right] == [True] * len(wrong) + [False] * len(right)


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte-order mark"])
def test_configs_studies_and_json_in_utf_8(tmp_path: Path, mark: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(mark + 'out = "läufe/数据"\nseeds = 3\n', encoding="utf-8")
    assert (load_config(config).out, load_config(config).seeds) == ("läufe/数据", 3)
    study = tmp_path / "étude.toml"
    study.write_text(mark + study_text("pgd-lambda").replace('title = "', 'title = "Übung: ', 1), encoding="utf-8")
    assert load_study(str(study)).title.startswith("Übung: ")
    (tmp_path / "a.json").write_text(mark + '{"name": "é"}', encoding="utf-8")
    assert read_json(tmp_path / "a.json", "field", "a.json") == {"name": "é"}
    config.write_bytes('out = "läufe"'.encode("latin-1"))
    with pytest.raises(InputError, match="expected valid TOML"):
        load_config(config)


def test_the_locale_says_nothing(tmp_path: Path) -> None:
    """Read, shown and written in a process whose locale knows ASCII alone."""
    (tmp_path / "config.toml").write_text('\ufeffout = "läufe"  # 数据\n', encoding="utf-8")
    flags = np.array([0, 0, 0, 0, 0, 1])
    np.savez(tmp_path / "daten.npz", observations=np.zeros((6, 2)), actions=np.zeros((6, 1)), rewards=np.zeros(6),
             terminals=flags, timeouts=0 * flags)  # fmt: skip
    (tmp_path / "läufe.npz").symlink_to(tmp_path / "daten.npz")
    script = (
        "import locale, sys; from pathlib import Path\n"
        "from jaxpgd.experiment.cli import main; from jaxpgd.experiment.config_files import *\n"
        "from jaxpgd.files import write_text; from jaxpgd.experiment.studies.plan import shipped, study_text\n"
        "assert locale.getpreferredencoding(False).lower() in ('ansi_x3.4-1968', 'us-ascii', 'ascii')\n"
        "config = load_config('config.toml'); write_text('again.toml', to_toml(config))\n"
        "for name in shipped(): study_text(name)\n"
        "assert load_config('again.toml') == config and config.out == 'l\\xe4ufe'\n"
        "main(['data', 'info', next(str(p) for p in Path('.').glob('l*.npz'))]); print('\\u6570')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | ASCII, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ufe.npz (npz)" in done.stdout and done.stdout.endswith("\\u6570\n")
