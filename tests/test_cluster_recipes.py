"""Scripts for clusters: their syntax, the command that they run, and a run on two "machines" on loopback."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import clipkit
from clipkit.recipe import Recipe
from tests.forked import ENVIRONMENT, free_port
from tests.training.test_machines import STEPS, assert_same_losses

FOLDER = Path(__file__).parents[1] / "docs" / "cluster"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def pod(kind: str) -> Any:
    specs = yaml.safe_load((FOLDER / "pytorchjob.yaml").read_text())["spec"]["pytorchReplicaSpecs"]
    return specs[kind]["template"]["spec"]


def commands(folder: Path, **bodies: str) -> str:
    """Write commands as Bash scripts; return a PATH that finds them first."""
    folder.mkdir()
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.sh")), ids=lambda file: file.name)
def test_scripts_parse_and_resume(file: Path) -> None:
    done = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = file.read_text()
    assert "-m clipkit train" in text
    assert "--resume" in text


def test_ssh_script_starts_one_launcher_for_each_machine(tmp_path: Path) -> None:
    """Run the script with an `ssh` that prints what it is given."""
    path = commands(tmp_path / "bin", ssh='echo "$@"')
    command = ["bash", str(FOLDER / "ssh.sh"), "one two", "my recipe.yaml", "optim.lr=1e-5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": path}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for rank, machine in enumerate(("one", "two")):
        (line,) = [line for line in done.stdout.splitlines() if f"-tt {machine} " in line]
        assert f"--node-rank {rank}" in line
        assert "--nproc-per-node gpu" in line
        assert "--master-addr one --master-port 29500" in line
        assert r"train my\ recipe.yaml optim.lr=1e-5 --resume" in line


def test_kubernetes_job_starts_the_same_pod_everywhere() -> None:
    master, worker = pod("Master"), pod("Worker")
    assert master == worker
    (container,) = master["containers"]
    assert container["name"] == "pytorch"
    assert container["command"][:4] == ["torchrun", "-m", "clipkit", "train"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in master["volumes"]}


def on_kubernetes(file: str, output: str) -> str:
    """Return a script that starts the command of each pod with the variables that the operator sets."""
    command = pod("Worker")["containers"][0]["command"]
    command = [{"/training/recipe.yaml": file, "output=/training/run": f"output={output}"}.get(c, c) for c in command]
    pods = [f"PET_NODE_RANK={rank} {' '.join(command)} & pods+=($!)" for rank in range(2)]
    return "\n".join(["pods=()", *pods, 'for pod in "${pods[@]}"; do wait "$pod" || exit 1; done'])


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["ssh", "slurm", "kubernetes"])
def test_two_machines_on_loopback_train_the_same_model(
    recipe: Callable[..., Recipe], tmp_path: Path, cluster: str
) -> None:
    """Run each recipe with replacements for `ssh`, `srun` and `scontrol`, and for the operator of Kubernetes."""
    file, output, port = tmp_path / "r.yaml", tmp_path / "run", str(free_port())
    changes = {**STEPS, "train.epochs": 2}
    file.write_text(recipe(changes).to_yaml())
    path = commands(
        tmp_path / "bin",
        torchrun=f'exec {sys.executable} -m torch.distributed.run "$@"',
        ssh='exec bash -c "$3"',
        scontrol="echo 127.0.0.1",
        srun='shift; "$@" & one=$!; "$@" & wait $one && wait $!',
        kubernetes=on_kubernetes(str(file), str(output)),
    )
    of_cluster = {
        "ssh": (["bash", str(FOLDER / "ssh.sh"), "127.0.0.1 localhost", str(file)], {"PROCESSES": "1", "PORT": port}),
        "slurm": (
            ["bash", str(FOLDER / "slurm.sh"), str(file)],
            {
                "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "PORT": port,
                "SLURM_GPUS_ON_NODE": "1", "SLURM_CPUS_PER_TASK": "1",
            },
        ),
        "kubernetes": (
            ["kubernetes"],
            {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port},
        ),
    }  # fmt: skip
    command, variables = of_cluster[cluster]
    python_path = os.pathsep.join(filter(None, [str(FOLDER.parents[1]), os.environ.get("PYTHONPATH")]))
    environment = ENVIRONMENT | variables | {"PATH": path, "PYTHONPATH": python_path}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 processes on cpu joined by gloo") == 1
    clipkit.train(recipe({**changes, "output": str(tmp_path / "alone")}))
    assert_same_losses(output, tmp_path / "alone")
