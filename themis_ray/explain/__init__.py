"""Why the model says so: attributions, what they look like over a clip, and a page of them."""

__all__: list[str] = []
