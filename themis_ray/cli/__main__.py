"""`python -m themis_ray.cli`."""

from themis_ray.cli import main

main()
