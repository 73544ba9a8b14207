"""Everything that a labelling service stores, by what it is about."""

from themis_ray.labeling.database import Database
from themis_ray.labeling.store.access import Access, Member, Role, TokenRow
from themis_ray.labeling.store.assigning import Assignment, Clip, Desk
from themis_ray.labeling.store.collecting import Answers
from themis_ray.labeling.store.errors import (
    ConflictError,
    ForbiddenError,
    LateError,
    NotFoundError,
    StoreError,
    TooManyError,
    WrongError,
)
from themis_ray.labeling.store.people import Annotator, Completion, People, panel_key
from themis_ray.labeling.store.studies import Status, Studies, StudyCounts, StudyRow
from themis_ray.labeling.store.work import Receipt, Work

__all__ = [
    "Access",
    "Annotator",
    "Answers",
    "Assignment",
    "Clip",
    "Completion",
    "ConflictError",
    "Desk",
    "ForbiddenError",
    "LabelStore",
    "LateError",
    "Member",
    "NotFoundError",
    "People",
    "Receipt",
    "Role",
    "Status",
    "StoreError",
    "Studies",
    "StudyCounts",
    "StudyRow",
    "TokenRow",
    "TooManyError",
    "Work",
    "WrongError",
    "panel_key",
]


class LabelStore:
    """The store of a labelling service.

    Args:
        url: Address of the database, see `Database`.

    Raises:
        ConfigError: The address is wrong, or the database cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.database.migrate()
        self.studies = Studies(self.database)
        self.people = People(self.database)
        self.work = Work(self.database)
        self.access = Access(self.database)

    def close(self) -> None:
        """Closes the connections."""
        self.database.close()
