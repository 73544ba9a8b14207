"""`make demo`: the main job, small enough to watch."""

from themis_ray.cli import main

DEMO = ("env.id=Pendulum-v1", "num_env_steps=8000", "feedback.budget=100")

if __name__ == "__main__":
    main(["train", *DEMO])
