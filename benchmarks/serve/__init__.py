"""The labelling service under load: `python -m benchmarks.serve`, or `make bench-serve` and `make bench-serve-chaos`.

`themis serve` is started as a user starts it, with a study of really encoded clips. Annotators that are programs then
come to it over HTTP: each joins, fetches the clips of what it has on its desk, thinks, answers, and so on until it has
given its share of answers. The load generator is a process of its own on the same cores. What is measured is the time
of each request at the generator, by route.

Every answer that was acknowledged is written into a ledger, which is compared with the database when all is over:

    lost            acknowledged, and not in the database as it was given
    doubled         more than one answer of an annotator to one assignment or query
    over_collected  answers to queries beyond the overlap

With `--chaos` a replica is killed (kill -9) every 30 s, and once, half-way, all processes of the service, which is then
started again. Annotators send an answer that was not acknowledged again, with the same id, as the page does.

The results are `benchmarks/out/serve.json` and `benchmarks/out/serve_chaos.json`.
"""
