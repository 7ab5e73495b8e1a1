"""What is counted while serving, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Meters:
    """One set per server. No label holds anything a user wrote."""

    def __init__(self) -> None:
        self.registry = kept = CollectorRegistry()
        self.requests = Counter("tilth_requests", "Answered requests.", ["path", "status"], registry=kept)
        self.seconds = Histogram("tilth_request_seconds", "Until the last byte.", ["path"], buckets=_SECONDS, registry=kept)
        self.prompt_tokens = Counter("tilth_prompt_tokens", "Tokens read.", registry=kept)
        self.generated_tokens = Counter("tilth_generated_tokens", "Tokens generated.", registry=kept)
        self.guarded = Counter("tilth_guarded", "Continuations the guard acted on.", registry=kept)
        self.waiting = Gauge("tilth_waiting", "Continuations not yet begun.", registry=kept)
        self.running = Gauge("tilth_running", "Continuations being generated.", registry=kept)
        self.batch = Histogram(
            "tilth_batch_rows", "Rows of a batch when it begins.", buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=kept
        )

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)
