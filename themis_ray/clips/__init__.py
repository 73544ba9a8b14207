"""What is watched: the video of a segment, and what is drawn around its frames."""

from themis_ray.clips.gallery import GalleryClip, spread_segments, write_gallery, write_page
from themis_ray.clips.pictures import draw_actions, draw_caption, side_by_side, upscale
from themis_ray.clips.replay import Replayer, check_drawing, replay_order
from themis_ray.clips.video import CODECS, clip_name, read_clip, write_clip

__all__ = [
    "CODECS",
    "GalleryClip",
    "Replayer",
    "check_drawing",
    "clip_name",
    "draw_actions",
    "draw_caption",
    "read_clip",
    "replay_order",
    "side_by_side",
    "spread_segments",
    "upscale",
    "write_clip",
    "write_gallery",
    "write_page",
]
