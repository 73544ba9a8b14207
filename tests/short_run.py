"""Settings of a run that is over in seconds, for tests of what is done with one."""

SHORT_RUN = (
    "env.id=Pendulum-v1",
    "env.horizon=50",
    "exploration.num_seed_steps=100",
    "exploration.num_env_steps=100",
    "feedback.session_size=4",
    "feedback.segment_length=10",
    "algorithm.hidden_sizes=[16]",
    "algorithm.batch_size=16",
    "reward.hidden_sizes=[16]",
    "reward.num_epochs=2",
    "num_evaluation_episodes=1",
)
