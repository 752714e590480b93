"""Scripts for clusters: their syntax, and the command that they run."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "recipes" / "cluster"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.sh")), ids=lambda file: file.name)
def test_scripts_parse_and_resume(file: Path) -> None:
    done = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = file.read_text()
    assert "-m clipkit train" in text
    assert "--resume" in text


def test_ssh_script_starts_one_launcher_for_each_machine(tmp_path: Path) -> None:
    """Run the script with an `ssh` that prints what it is given."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\necho "$@"\n')
    ssh.chmod(0o755)
    command = ["bash", str(FOLDER / "ssh.sh"), "one two", "my recipe.yaml", "optim.lr=1e-5"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for rank, machine in enumerate(("one", "two")):
        (line,) = [line for line in done.stdout.splitlines() if f"-tt {machine} " in line]
        assert f"--node-rank {rank}" in line
        assert "--master-addr one" in line
        assert r"train my\ recipe.yaml optim.lr=1e-5 --resume" in line


def test_kubernetes_job_starts_the_same_pod_everywhere() -> None:
    job = yaml.safe_load((FOLDER / "pytorchjob.yaml").read_text())
    master, worker = (job["spec"]["pytorchReplicaSpecs"][kind]["template"]["spec"] for kind in ("Master", "Worker"))
    assert master == worker
    (container,) = master["containers"]
    assert container["name"] == "pytorch"
    assert container["command"][:4] == ["torchrun", "-m", "clipkit", "train"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in master["volumes"]}
