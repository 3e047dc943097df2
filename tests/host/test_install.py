"""Where pip puts the start-up files, from a wheel and from an editable install, and that it takes them away."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
START_FILES = ["mlx_autoperfect.pth", "mlx_autoperfect.start"]


def test_wheel_has_the_start_up_files_at_its_root_and_in_its_record(wheel) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        recorded = [row[0] for row in csv.reader(io.StringIO(archive.read(record).decode()))]
    assert [name for name in names if name.endswith((".pth", ".start"))] == START_FILES
    assert set(START_FILES) <= set(recorded)
    assert "mlx_autoperfect_lm/_startup.py" in names


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_the_flag_comes_and_goes_with_the_install(fresh, wheel, pip, editable) -> None:
    environment = fresh
    script = environment.script("mlx_lm.generate", "mlx_lm.generate")
    pip(environment, "install", *(["-e", PROJECT] if editable else [wheel]))
    assert all((environment.site / name).is_file() for name in START_FILES)
    assert (environment.site / "mlx_autoperfect_lm").exists() is not editable
    assert "--autoperfect" in environment.run(script, "--help", fakes=("mlx_lm",)).stdout
    result = environment.run(script, "--autoperfect", fakes=("core_recording", "mlx_lm"))
    assert json.loads(result.stdout)["patched"] is True
    pip(environment, "uninstall", "mlx-autoperfect")
    assert not list(environment.site.glob("*mlx_autoperfect*"))
    result = environment.run(script, "--autoperfect", fakes=("core_recording", "mlx_lm"))
    assert (result.returncode, "unrecognized arguments" in result.stderr) == (2, True)


def test_the_console_script_and_the_entry_point_are_declared(installed) -> None:
    code = (
        "from importlib.metadata import entry_points as e\n"
        "print(e(group='console_scripts', name='mlx-autoperfect')['mlx-autoperfect'].value)\n"
        "print(e(group='mlx_autoperfect')['lm'].load().activate.__module__)"
    )
    assert installed.run("-c", code).stdout.split() == ["mlx_autoperfect.cli.main:main", "mlx_autoperfect_lm"]
