"""The labelling service as a Ray Serve application: `labelling(settings)`.

`themis serve` runs it on one machine, `serve run serve/labeling.yaml` and `serve deploy` on a Ray cluster. Replicas
import this module, and with it nothing of training.
"""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from themis_ray.labeling.app import create_app
from themis_ray.labeling.clip_server import CLIPS_PATH, ClipApp
from themis_ray.labeling.housekeeping import Housekeeper, read_smtp
from themis_ray.labeling.security import read_secret
from themis_ray.labeling.service import Service, ServiceSettings
from themis_ray.labeling.store import LabelStore

__all__ = ["APP_NAME", "LabellingSettings", "clips_folder", "labelling", "secret_path"]

APP_NAME = "labelling"
DATABASE_VARIABLE = "THEMIS_DATABASE_URL"
RETRY_AFTER_S = 2.0
Address = Annotated[str, AfterValidator(lambda text: text.rstrip("/"))]  # paths are put behind it


class LabellingSettings(BaseModel):
    """What a labelling service is started with; `args` in `serve/labeling.yaml`.

    The secret is none of the settings, because Ray shows them: it is `secret.key` in the data folder, or the
    environment variable THEMIS_SECRET. For the same reason the address of a database with a password in it can be given
    as THEMIS_DATABASE_URL.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(
        default=Path("labelling"), description="Folder of the secret, the clips and SQLite; every replica must see it."
    )
    database_url: str = Field(
        default="", description="Address of a Postgres database; empty: THEMIS_DATABASE_URL, or SQLite."
    )
    public_url: Address = Field(default="http://127.0.0.1:8000", description="Where people reach the service.")
    clips_url: Address = Field(
        default="", description="Where people reach the clip server; empty: replicas send clips themselves, slower."
    )
    root: Address = Field(default="", description="Path that the service is under, such as /labels.")
    metrics_token: str = Field(default="", description="Lets Prometheus read /metrics; empty: admins only.")
    joins_per_minute: int = Field(default=600, ge=1, description="People who may come to one study in a minute.")
    num_replicas: int | None = Field(default=None, ge=1, description="A fixed number; None: as many as are needed.")
    min_replicas: int = Field(default=1, ge=1, description="Of as many as are needed.")
    max_replicas: int = Field(default=8, ge=1, description="Of as many as are needed.")
    max_ongoing_requests: int = Field(
        default=256, ge=1, description="Requests that a replica works on at once. Once more wait, it answers 503."
    )

    def resolved_database_url(self) -> str:
        """The address of the database, with what was left out filled in."""
        given = self.database_url or os.environ.get(DATABASE_VARIABLE, "")
        return given or f"sqlite:///{self.data.resolve() / 'labelling.db'}"


def clips_folder(data: Path) -> Path:
    """Returns the folder of all clips."""
    return data / "clips"


def secret_path(data: Path) -> Path:
    """Returns the file of the secret."""
    return data / "secret.key"


class ClipsFirst:
    """Sends clips from a replica where there is no clip server; everything else goes to the application."""

    def __init__(self, app: Any, clips: ClipApp, root: str) -> None:
        self._app, self._clips = app, clips
        self._prefix = f"{root}{CLIPS_PATH}/"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on."""
        is_clip = scope["type"] == "http" and scope["path"].startswith((self._prefix, f"{CLIPS_PATH}/"))
        await (self._clips if is_clip else self._app)(scope, receive, send)


@serve.ingress()
class LabellingReplica:
    """One replica: its own connections to the database, its own FastAPI application."""

    def __init__(self, settings: LabellingSettings) -> None:
        self._settings = settings

    def __serve_build_asgi_app__(self) -> Any:
        """Makes the application; an engine cannot be sent from process to process, so each replica has its own."""
        settings = self._settings
        secret = read_secret(secret_path(settings.data))
        folder = clips_folder(settings.data)
        service = Service(
            LabelStore(settings.resolved_database_url()),
            ServiceSettings(
                secret=secret,
                clips_folder=folder,
                clips_url=settings.clips_url or settings.root,
                public_url=settings.public_url,
                root=settings.root,
                metrics_token=settings.metrics_token,
                joins_per_minute=settings.joins_per_minute,
            ),
        )
        Housekeeper(service, read_smtp()).start()
        app = create_app(service)
        if not settings.clips_url:
            app.add_middleware(ClipsFirst, clips=ClipApp(folder, secret), root=settings.root)
        return app


def labelling(settings: LabellingSettings) -> Application:
    """Returns the application, to be run by Ray Serve.

    Serve makes the settings from `args` of a YAML by the annotation, which therefore must not be a string.

    Args:
        settings: With a fixed number of replicas, or bounds between which their number follows the load.
    """
    scaling: dict[str, Any] = (
        {"num_replicas": settings.num_replicas}
        if settings.num_replicas is not None
        else {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=settings.min_replicas,
                max_replicas=settings.max_replicas,
                target_ongoing_requests=max(1, settings.max_ongoing_requests // 16),
                look_back_period_s=20.0,
                upscale_delay_s=5.0,
                downscale_delay_s=300.0,
            )
        }
    )
    deployment = serve.deployment(
        LabellingReplica,
        name="LabellingReplica",
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=4 * settings.max_ongoing_requests,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_AFTER_S),
        # A line for every request costs more than some requests; /metrics counts them by route.
        logging_config=LoggingConfig(enable_access_log=False),
        # Replicas wait for the database most of the time; a share of a core each keeps Ray from counting them out.
        ray_actor_options={"num_cpus": 0.1},
        health_check_period_s=5.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=10.0,
        **scaling,
    )
    application: Application = deployment.bind(settings)
    return application
