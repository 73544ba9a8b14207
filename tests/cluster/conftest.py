"""Several nodes of Ray on this machine, with GPUs that exist as resources only."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 80 * 2**20
START_TIMEOUT_S = 60.0


def cpus_for_gpus() -> Callable[[], None]:
    """Return what lets learners compute where GPUs are names only: on the CPU, and gradients exchanged through gloo.

    A function within a function, so that it reaches Ray's workers by value.
    """

    def replace() -> None:
        import torch
        from ray.air._internal import torch_utils
        from ray.train.torch.config import TorchConfig

        defaults: Any = TorchConfig.__init__.__defaults__
        TorchConfig.__init__.__defaults__ = ("gloo", *defaults[1:])
        torch_utils.get_devices = lambda: [torch.device("cpu")]

    return replace


class Nodes:
    """A cluster whose nodes have names.

    Args:
        kinds: Name -> resources; the first is the head's.
    """

    def __init__(self, kinds: Mapping[str, Mapping[str, Any]]) -> None:
        self.cluster = Cluster()
        self._nodes: dict[str, Any] = {}
        for name, resources in kinds.items():
            self.add(name, **resources)
        ray.init(
            address=self.cluster.address,
            namespace="themis",
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"worker_process_setup_hook": cpus_for_gpus()},
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while sum(node["Alive"] for node in ray.nodes()) < len(kinds):
            assert time.monotonic() < deadline, "nodes did not start"
            time.sleep(0.1)

    def add(self, name: str, **resources: Any) -> None:
        """Start a node."""
        self._nodes[name] = self.cluster.add_node(
            object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, **resources
        )

    def remove(self, name: str) -> None:
        """End a node and all that runs on it, as when a machine is lost."""
        self.cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def of(self, class_name: str) -> list[str]:
        """Return the nodes of all living actors of a class."""
        names = {node.node_id: name for name, node in self._nodes.items()}
        actors = ray._private.state.actors().values()  # type: ignore[attr-defined]
        return sorted(
            names.get(actor["Address"]["NodeID"], "gone")
            for actor in actors
            if actor["State"] == "ALIVE" and class_name in actor["ActorClassName"]
        )

    def close(self) -> None:
        """End all nodes."""
        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture
def start_nodes() -> Iterator[Callable[..., Nodes]]:
    """Return what starts nodes by name; they end with the test."""
    started: list[Nodes] = []

    def start(**kinds: Mapping[str, Any]) -> Nodes:
        started.append(Nodes(kinds))
        return started[-1]

    yield start
    for nodes in started:
        nodes.close()
