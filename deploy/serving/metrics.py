"""Counters of one ingress process, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Of requests, and of the work that models were given."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options = {"registry": self.registry}
        self._requests = Counter("mmbm_requests", "Requests by route and status", ["route", "status"], **options)  # type: ignore[arg-type]
        self._seconds = Histogram(
            "mmbm_request_seconds", "Time to the end of the answer", ["route"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._items = Counter("mmbm_items", "Rows that a model was asked about", ["model", "work"], **options)  # type: ignore[arg-type]
        self._tokens = Counter("mmbm_tokens", "Tokens of their texts", ["model"], **options)  # type: ignore[arg-type]
        told = "Requests that a model did not answer; without a model: those that were too many at once"
        self._errors = Counter("mmbm_errors", told, ["model", "code"], **options)  # type: ignore[arg-type]
        self._load = {
            name: Gauge(f"mmbm_{name}", what, ["model", "replica"], **options)  # type: ignore[arg-type]
            for name, what in {
                "queued_cost": "What waits, in batches",
                "batches": "Batches since the start",
                "batch_items": "Rows of all batches",
                "batch_seconds": "Time of all batches",
                "waiting_texts": "Texts to be generated that wait",
                "running_texts": "Texts that are being generated",
                "written_tokens": "Generated tokens since the start",
            }.items()
        }

    def request(self, *, route: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def work(self, *, model: str, work: str, items: int, tokens: int) -> None:
        """A model has answered."""
        self._items.labels(model, work).inc(items)
        self._tokens.labels(model).inc(tokens)

    def refused(self, *, model: str, code: str) -> None:
        """A model has not; "" where it was not even asked."""
        self._errors.labels(model, code).inc()

    def load(self, *, model: str, replica: str, values: dict[str, float]) -> None:
        """What a replica told of itself."""
        for name, value in values.items():
            self._load[name].labels(model, replica).set(value)

    def text(self) -> bytes:
        """What a scrape gets."""
        return generate_latest(self.registry)
