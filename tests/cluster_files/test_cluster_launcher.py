"""cluster.yaml and cluster-gcp.yaml: what Ray's own validation says, and what it cannot tell."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from shared_files import CLUSTERS, DOCKERFILE, ROOT, WRITTEN, debian_packages, pins

from themis_ray.config import load_config, resolve
from themis_ray.envs.display import DEBIAN_PACKAGES
from themis_ray.sweeping.trials import bundles_of

FENCED_YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MACHINE_PATH = re.compile(r"/(?:work|root|tmp/cl|Users|mnt|opt/pypi)/|/home/(?!ubuntu/|ray/)")
KEY = re.compile(r"AKIA[0-9A-Z]{12}|BEGIN [A-Z ]*PRIVATE KEY|AIza[\w-]{30}|gh[ps]_\w{20}|\bami-[0-9a-f]{8}|:\d{12}:")
SDKS = {"cluster.yaml": ("boto3",), "cluster-gcp.yaml": ("google-api-python-client", "google-auth-httplib2")}


@pytest.fixture(params=CLUSTERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def given(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return config


@pytest.fixture
def prepared(given: dict[str, Any]) -> dict[str, Any]:
    """The file as `ray up` sees it, with Ray's defaults below it."""
    config: dict[str, Any] = prepare_config(copy.deepcopy(given))
    return config


def is_spot(name: str, node_type: dict[str, Any]) -> bool:
    node_config = node_type["node_config"]
    if name == "cluster.yaml":
        return node_config.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    return node_config.get("scheduling", {}).get("provisioningModel") == "SPOT"


# ---------------------------------------------------------------- Ray's own validation


def test_ray_accepts_the_file(prepared: dict[str, Any]) -> None:
    validate_config(prepared)


def test_validation_would_find_a_mistake(prepared: dict[str, Any]) -> None:
    prepared["available_node_types"]["cpu_worker"]["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepared)


# ---------------------------------------------------------------- machines


def test_every_machine_says_what_it_has(given: dict[str, Any]) -> None:
    resources = {kind: node_type["resources"] for kind, node_type in given["available_node_types"].items()}
    assert resources == {
        "head": {"CPU": 0},
        "gpu_worker": {"CPU": 8, "GPU": 1, "learner_node": 1},
        "cpu_worker": {"CPU": 16, "env_runner_node": 1},
    }


def test_google_clouds_gpu_machines_have_a_disk_that_they_accept() -> None:
    """g2 machines refuse pd-standard, which is what a disk is by default; a disk's type belongs to a zone."""
    given = yaml.safe_load((ROOT / "cluster-gcp.yaml").read_text())
    (disk,) = given["available_node_types"]["gpu_worker"]["node_config"]["disks"]
    zone = given["provider"]["availability_zone"]
    assert disk["initializeParams"]["diskType"] == f"zones/{zone}/diskTypes/pd-balanced"


def test_machines_have_the_cpus_that_are_told(name: str, given: dict[str, Any]) -> None:
    for kind in ("gpu_worker", "cpu_worker"):
        node_type = given["available_node_types"][kind]
        if name == "cluster.yaml":
            size = re.search(r"\.(\d*)xlarge$", node_type["node_config"]["InstanceType"])
            assert size is not None
            num_cpus = 4 * int(size[1] or 1)
        else:
            num_cpus = int(node_type["node_config"]["machineType"].rpartition("-")[2])
        assert node_type["resources"]["CPU"] == num_cpus


def test_only_cpu_workers_are_spot(name: str, given: dict[str, Any]) -> None:
    spot = [kind for kind, node_type in given["available_node_types"].items() if is_spot(name, node_type)]
    assert spot == ["cpu_worker"]


def test_nothing_runs_without_work(given: dict[str, Any]) -> None:
    node_types = given["available_node_types"]
    assert all(node_type["min_workers"] == 0 for node_type in node_types.values())
    assert sum(node_type["max_workers"] for node_type in node_types.values()) == given["max_workers"]
    assert 0 < given["idle_timeout_minutes"] <= 15
    assert given["provider"]["cache_stopped_nodes"] is False


def test_both_clouds_get_the_same_cluster() -> None:
    aws, gcp = (yaml.safe_load((ROOT / name).read_text()) for name in CLUSTERS)
    for config in (aws, gcp):
        config.pop("provider")
        # Their first command installs the cloud's own library.
        del config["head_setup_commands"][0]
        for node_type in config["available_node_types"].values():
            del node_type["node_config"]
    assert aws == gcp


def test_workers_may_use_the_storage(name: str, given: dict[str, Any]) -> None:
    key = "IamInstanceProfile" if name == "cluster.yaml" else "serviceAccounts"
    accounts = [given["available_node_types"][kind]["node_config"][key] for kind in ("gpu_worker", "cpu_worker")]
    assert "themis-ray-worker" in str(accounts[0])
    assert accounts[0] == accounts[1]


# ---------------------------------------------------------------- what is installed


def test_this_project_is_installed_with_its_constraints(prepared: dict[str, Any]) -> None:
    for commands in (prepared["setup_commands"], prepared["head_setup_commands"], prepared["worker_setup_commands"]):
        (install,) = [command for command in commands if " -e " in command]
        assert install.startswith("cd ~/themis;")
        assert re.search(r"pip install .*-c constraints\.txt -e '\.\[all-envs\]'$", install)
        assert any("--python 3.11 " in command for command in commands)


def test_what_is_mounted_is_there_and_enough_to_install(given: dict[str, Any]) -> None:
    mounts = {remote: local for remote, local in given["file_mounts"].items() if not local.startswith("~")}
    for remote, local in mounts.items():
        assert remote == f"/home/{given['auth']['ssh_user']}/themis/{local}"
        assert (ROOT / local).exists()
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "themis_ray"} <= set(mounts.values())


def test_machines_and_image_hold_the_same_files(given: dict[str, Any]) -> None:
    mounted = {local for local in given["file_mounts"].values() if not local.startswith("~")}
    copies = re.findall(r"^COPY (.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    assert {name for names in copies for name in names.split()} == mounted


def test_machines_and_image_can_draw(given: dict[str, Any]) -> None:
    needed = set(DEBIAN_PACKAGES.partition(" (")[0].split())
    (command,) = [command for command in given["setup_commands"] if " install " in command and "apt-get" in command]
    assert set(debian_packages(command)) == needed
    assert needed <= set(debian_packages(DOCKERFILE.read_text()))


def test_the_image_installs_the_project_with_its_constraints() -> None:
    text = DOCKERFILE.read_text()
    assert "FROM python:3.11-" in text
    assert "pip install --no-cache-dir -c constraints.txt -e '.[all-envs,postgres]'" in text


def test_ray_is_the_pinned_one_wherever_it_is_named() -> None:
    pinned = pins()["ray"]
    found = set()
    for path in WRITTEN:
        text = path.read_text()
        found |= set(re.findall(r"\bray(?:\[[\w,]+\])?==([\d.]+\d)", text))
        found |= set(re.findall(r'rayVersion: "?([\d.]+\d)', text))
    assert found == {pinned}


def test_the_head_has_the_library_of_its_cloud(name: str, given: dict[str, Any]) -> None:
    first = given["head_setup_commands"][0]
    assert all(re.search(rf"\b{sdk}==\d", first) for sdk in SDKS[name])


def test_every_machine_asks_for_the_token(given: dict[str, Any]) -> None:
    assert given["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in command for command in given["setup_commands"])
    assert not any("0.0.0.0" in command for command in given["head_start_ray_commands"])


# ---------------------------------------------------------------- where work goes


def test_the_page_of_docs_places_work_where_it_says(given: dict[str, Any]) -> None:
    """Every bundle of the page's example fits one kind of machine: learner and reward actor GPUs, env runners spot."""
    (example,) = [
        block for block in FENCED_YAML.findall((ROOT / "docs" / "cluster.md").read_text()) if "env_runner_node" in block
    ]
    resources = yaml.safe_load(example)["resources"]
    config, _ = resolve(load_config(None, ["env.id=Pendulum-v1", f"resources={json.dumps(resources)}"]))
    node_types = given["available_node_types"]
    places = [
        [
            kind
            for kind, node_type in node_types.items()
            if all(node_type["resources"].get(what, 0) >= amount for what, amount in bundle.items())
        ]
        for bundle in bundles_of(config)
    ]
    assert places.count(["gpu_worker"]) == 2
    assert places.count(["cpu_worker"]) == resources["num_env_runners"]
    assert len(places) == 2 + resources["num_env_runners"]


# ---------------------------------------------------------------- nothing of ours


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_no_machine_path_and_no_key(path: Path) -> None:
    text = path.read_text()
    assert not MACHINE_PATH.search(text)
    assert not KEY.search(text)
