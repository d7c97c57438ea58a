"""The launch scripts, as far as they can be tried without a cluster."""

import os
import socket
import string
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import yaml

from hybrid_jax.sharding import MeshConfig
from hybrid_jax.training.metrics import read_metrics
from hybrid_jax.training.run_config import RunConfig
from hybrid_jax.yaml_config import from_command_line, to_yaml
from tests.environment import ROOT, THREADS, child_environment
from tests.training.toy import ATTENTION_ONLY, toy_model, toy_run

LAUNCH = ROOT / "scripts/launch"

# Starts what srun would start on two hosts, with the variables SLURM sets there.
SRUN = """#!{python}
import os, subprocess, sys
command = sys.argv[sys.argv.index("python"):]
assert "--container-image=registry/image:tag" in sys.argv
tasks = [
    subprocess.Popen([sys.executable, *command[1:]], env=os.environ | {{
        "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2",
        "SLURM_PROCID": str(index), "SLURM_LOCALID": "0",
    }})
    for index in range(2)
]
sys.exit(max(task.wait() for task in tasks))
"""


def free_job_id() -> int:
    """A SLURM job id from which jax makes the number of a free port: 61440 + id modulo 4096."""
    for job_id in range(os.getpid() % 4096, 8192):
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("localhost", 61440 + job_id % 4096)):
                return job_id
    raise AssertionError("no free port")


def test_slurm_script_starts_one_run_of_several_processes(tmp_path):
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    run = toy_run(tmp_path, num_steps=2, model=toy_model(**ATTENTION_ONLY), mesh=MeshConfig(data=2))
    (tmp_path / "run.yaml").write_text(to_yaml(run))
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    srun.write_text(SRUN.format(python=sys.executable))
    srun.chmod(0o755)
    environment = child_environment(
        PATH=f"{srun.parent}:{os.environ['PATH']}",
        SLURM_JOB_ID=str(free_job_id()),
        SLURM_JOB_NAME="my-run",
        NPROC=THREADS,  # the two wait for each other
    )
    command = [str(LAUNCH / "slurm.sh"), "registry/image:tag", "run.yaml", "--logging.interval", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 2/2") == 1, "one process talks"
    assert [line["step"] for line in read_metrics(tmp_path / "runs/my-run/metrics.jsonl")] == [1, 2]


def test_slurm_script_says_what_is_missing():
    done = subprocess.run([str(LAUNCH / "slurm.sh")], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "usage: sbatch --job-name NAME" in done.stderr


def test_jobset_needs_only_a_name_and_an_image():
    text = (LAUNCH / "jobset.yaml").read_text()
    body = text.partition("\napiVersion")[2]
    template = string.Template(f"apiVersion{body}")
    assert set(template.get_identifiers()) == {"NAME", "IMAGE"}
    documents = list(yaml.safe_load_all(template.substitute(NAME="my-run", IMAGE="registry/image:tag")))
    assert [each["kind"] for each in documents] == [
        "PersistentVolumeClaim",
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "JobSet",
    ]
    *_, jobset = documents
    assert jobset["metadata"]["name"] == "my-run"
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert job["completionMode"] == "Indexed", "jax numbers processes by the pods' index"
    assert job["parallelism"] == job["completions"]
    pod = job["template"]["spec"]
    assert pod["serviceAccountName"] == documents[1]["metadata"]["name"]
    (container,) = pod["containers"]
    assert container["image"] == "registry/image:tag"
    python, script, config, *_ = container["command"]
    assert (python, script) == ("python", "scripts/train.py")
    run = from_command_line(RunConfig, [str(ROOT / config), *container["args"]])
    devices = job["parallelism"] * container["resources"]["limits"]["nvidia.com/gpu"]
    assert run.batch_size % (devices * run.num_microbatches) == 0
    assert run.output_folder == Path("/runs/my-run")
    claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]]
    assert documents[0]["metadata"]["name"] in claims
