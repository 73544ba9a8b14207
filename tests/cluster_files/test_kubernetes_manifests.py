"""deploy/kubernetes: Kubernetes' own schemas for pods and claims, KubeRay's fields, and Ray's reading of them."""

import copy
import json
import shlex
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import validate_config
from ray.serve.schema import ServeDeploySchema
from shared_files import DOCKERFILE, KUBERNETES, MANIFESTS, ROOT, load

from themis_ray.cli import main
from themis_ray.serving import LabellingSettings

SCHEMA = json.loads((ROOT / "tests" / "cluster_files" / "kuberay.schema.json").read_text())
# The oldest Kubernetes that still gets fixes, about, and the newest that the package knows.
VERSIONS = ("1.34", "1.37")
# Where the manifest may say something else than serve/labeling.yaml, and what.
OVERRIDES = {
    ("proxy_location",): "EveryNode",
    ("http_options", "host"): "0.0.0.0",
    ("applications", 0, "args", "data"): "/data/labelling",
    ("applications", 0, "args", "public_url"): "https://labels.example.org",
}


def ray_objects() -> dict[str, dict[str, Any]]:
    objects = [found for name in MANIFESTS for found in load(KUBERNETES / name)]
    return {found["kind"]: found for found in objects if found["apiVersion"] == "ray.io/v1"}


def cluster(kind: str) -> dict[str, Any]:
    spec: dict[str, Any] = ray_objects()[kind]["spec"]
    found: dict[str, Any] = spec["rayClusterSpec" if kind == "RayJob" else "rayClusterConfig"]
    return found


def groups(kind: str) -> dict[str, dict[str, Any]]:
    """Returns head and worker groups by name."""
    spec = cluster(kind)
    return {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}


PODS = [(kind, name) for kind in ("RayJob", "RayService") for name in groups(kind)]


# ---------------------------------------------------------------- schemas


@pytest.mark.parametrize("kind", ["RayJob", "RayService"])
def test_kuberay_knows_every_field(kind: str) -> None:
    jsonschema.validate(ray_objects()[kind], SCHEMA)


def test_the_schema_would_find_a_mistake() -> None:
    broken = copy.deepcopy(ray_objects()["RayJob"])
    broken["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("kind", "name"), PODS)
def test_kubernetes_accepts_every_pod(kind: str, name: str, version: str) -> None:
    spec = groups(kind)[name]["template"]["spec"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    kubernetes_validate.validate(pod, version, strict=True)


def test_kubernetes_would_refuse_a_wrong_pod() -> None:
    spec = copy.deepcopy(groups("RayJob")["head"]["template"]["spec"])
    spec["serviceAccount_name"] = spec.pop("serviceAccountName")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "head"}, "spec": spec}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_the_claim(version: str) -> None:
    (claim,) = [found for found in load(KUBERNETES / "rayservice.yaml") if found["apiVersion"] == "v1"]
    kubernetes_validate.validate(claim, version, strict=True)
    volumes = [group["template"]["spec"]["volumes"] for group in groups("RayService").values()]
    assert all(volume[0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"] for volume in volumes)


# ---------------------------------------------------------------- Ray's reading


def test_rays_autoscaler_reads_the_cluster_of_a_sweep() -> None:
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "sweep", "namespace": "default"}, "spec": cluster("RayJob")}
    )
    validate_config(config)
    node_types = config["available_node_types"]
    (head,) = [found for name, found in node_types.items() if name not in ("gpu-worker", "cpu-worker")]
    assert head["resources"]["CPU"] == 0
    gpu, cpu = node_types["gpu-worker"]["resources"], node_types["cpu-worker"]["resources"]
    assert (gpu["CPU"], gpu["GPU"], gpu["learner_node"]) == (7, 1, 1)
    assert (cpu["CPU"], cpu["env_runner_node"]) == (15, 1)
    assert "GPU" not in cpu
    assert [found["min_workers"] for found in node_types.values()] == [0, 0, 0]


def test_only_env_runners_go_to_spot_nodes() -> None:
    for name, group in groups("RayJob").items():
        text = json.dumps(group["template"]["spec"])
        assert ("capacityType" in text) == (name == "cpu-worker")
        assert ("gke-spot" in text) == (name == "cpu-worker")


# ---------------------------------------------------------------- the sweep


def test_the_sweep_that_is_run_is_in_the_image() -> None:
    spec = ray_objects()["RayJob"]["spec"]
    program, command, path, *options = shlex.split(spec["entrypoint"])
    assert (program, command) == ("themis", "sweep")
    home = "/home/ray/themis/"
    assert path.startswith(home)
    assert (ROOT / path.removeprefix(home)).is_file()
    assert f"WORKDIR {home.rstrip('/')}" in DOCKERFILE.read_text()
    known = CliRunner().invoke(main, ["sweep", "--help"]).output
    assert [option for option in options if option.startswith("--")] == ["--out", "--storage"]
    assert all(option in known for option in ("--out", "--storage"))


def test_nothing_is_left_when_the_sweep_is_over() -> None:
    spec = ray_objects()["RayJob"]["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] > 0


# ---------------------------------------------------------------- the service


def test_the_service_is_serve_labeling_but_for_four_lines() -> None:
    expected = yaml.safe_load((ROOT / "serve" / "labeling.yaml").read_text())
    for keys, value in OVERRIDES.items():
        inner = expected
        for key in keys[:-1]:
            inner = inner[key]
        assert inner[keys[-1]] != value
        inner[keys[-1]] = value
    deployed = yaml.safe_load(ray_objects()["RayService"]["spec"]["serveConfigV2"])
    assert deployed == expected


def test_serve_accepts_the_service() -> None:
    deployed = yaml.safe_load(ray_objects()["RayService"]["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(deployed)
    settings = LabellingSettings.model_validate(deployed["applications"][0]["args"])
    assert settings.max_replicas * 0.1 <= 1


def test_every_pod_of_the_service_has_secrets_and_disk() -> None:
    for group in groups("RayService").values():
        (container,) = group["template"]["spec"]["containers"]
        sources = {variable["name"]: variable["valueFrom"]["secretKeyRef"] for variable in container["env"]}
        assert sources == {
            "THEMIS_DATABASE_URL": {"name": "themis-labelling", "key": "database-url"},
            "THEMIS_SECRET": {"name": "themis-labelling", "key": "secret"},
        }
        (mount,) = container["volumeMounts"]
        assert mount["mountPath"] == "/data"


def test_the_readme_makes_the_secrets_that_are_named() -> None:
    text = (KUBERNETES / "README.md").read_text()
    for needed in ("secret generic themis-labelling", "--from-literal=database-url=", "--from-literal=secret="):
        assert needed in text


@pytest.mark.parametrize("kind", ["RayJob", "RayService"])
def test_clusters_ask_for_a_token_and_run_one_image(kind: str) -> None:
    assert cluster(kind)["authOptions"] == {"mode": "token"}
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups(kind).values()}
    assert images == {"registry.example.org/themis-ray:0.1.0"}
