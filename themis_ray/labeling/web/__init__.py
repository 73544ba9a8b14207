"""What people see of a study: templates, one stylesheet, and small scripts without a build."""

from themis_ray.labeling.web.render import STATIC_FOLDER, PageRenderer, page_renderer

__all__ = ["STATIC_FOLDER", "PageRenderer", "page_renderer"]
