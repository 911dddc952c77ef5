"""What the watchdog counts about itself; labels only from enums."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from watchdog.judge import Outcome, Standing

PROBES = Counter("hyperfactory_watchdog_probes", "Probes that ended.", ["outcome"])
ANSWER_S = Histogram(
    "hyperfactory_watchdog_answer_seconds",
    "Time from probe to answer.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
VERDICTS = Counter("hyperfactory_watchdog_verdicts", "Verdicts reached.", ["standing"])
REPORTS = Counter("hyperfactory_watchdog_reports", "Reports by what became of them.", ["result"])
WATCHED = Gauge("hyperfactory_watchdog_agents", "Agents probed now.")
BRAKED = Gauge("hyperfactory_watchdog_braked", "1 while too many are silent together to condemn any.")
STALLS = Gauge("hyperfactory_watchdog_stalls", "Times the watchdog itself was late.")
FORGIVEN = Gauge("hyperfactory_watchdog_forgiven_misses", "Misses not counted because of a stall.")

# labels() costs several microseconds, so each is looked up once.
PROBES_BY = {outcome: PROBES.labels(outcome.value) for outcome in Outcome}
VERDICTS_BY = {standing: VERDICTS.labels(standing.value) for standing in Standing}
