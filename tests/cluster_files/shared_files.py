"""What the tests of cluster files and manifests have in common."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
CLUSTERS = ("cluster.yaml", "cluster-gcp.yaml")
MANIFESTS = ("rayjob.yaml", "rayservice.yaml")
WRITTEN = (
    *(ROOT / name for name in CLUSTERS),
    *(KUBERNETES / name for name in MANIFESTS),
    DOCKERFILE,
    KUBERNETES / "README.md",
    ROOT / "docs" / "cluster.md",
)


def pins() -> dict[str, str]:
    """Returns name -> version of constraints.txt."""
    return dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def load(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def debian_packages(text: str) -> list[str]:
    """Returns the packages that a shell text installs with apt-get."""
    (names,) = re.findall(r"apt-get [^&;\n]*?\binstall\b([^&;]*)", text.replace("\\\n", " "))
    return [name for name in names.split() if not name.startswith("-")]
