"""``make env``: when it remakes the environment."""

import os
import re
import shutil
import subprocess

from clones import ROOT


def test_the_environment_is_remade_where_the_lock_says_something_else_not_where_it_is_newer(
    tmp_path,
):
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def would_run():
        make = ["make", "-n", "env"]
        return subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    stamp = tmp_path / re.search(r"touch (\.venv/made-of-\w{16})\n", would_run())[1]
    stamp.parent.mkdir()
    stamp.touch()
    os.utime(tmp_path / "requirements.txt")
    assert "pip install" not in would_run()
    with open(tmp_path / "requirements.txt", "a") as lock:
        lock.write("another==1.0\n")
    assert "pip install" in would_run()
