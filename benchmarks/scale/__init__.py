"""How far experiments scale on this machine: env runners, trials, callers of the reward actor, and a large sweep.

    python -m benchmarks.scale [--parts noop,trials,reward,steps] [--missing] [--quick] [--num-trials 500]

Prints a table for each part and writes benchmarks/out/scale.json after each, keeping what other parts wrote before:

* noop: what Tune costs per trial, with trials that do nothing, and how the memory of the head grows over them; what a
  real trial's process takes to start; from both, a model of 1000 trials on larger machines.
* trials: trials per hour, one and two at a time.
* reward: steps per second that the reward actor predicts for 1, 2, 4 and 8 callers, next to a bare forward pass.
* steps: env steps per second of PPO with 0 (in the learner's process), 1, 2 and 4 env runners.

Processes of trials and callers import this package, so it imports nothing.
"""
