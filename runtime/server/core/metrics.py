"""Prometheus metrics of one app, with vLLM's names; each app has its own registry."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from llmos.runtime.engine import Engine
from llmos.runtime.engine.generate import GenerationEngine, GenerationReport, StepReport
from llmos.runtime.engine.observer import BatchReport, RequestReport

_TIME_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_MODEL = ["model_name"]
REASONS = ("stop", "abort", "timeout", "error")
GENERATION_REASONS = (*REASONS, "length")


class Metrics:
    """All metrics of an app, labeled by model."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.http = Counter("llmos_http_requests", "HTTP requests by route and status.", ["route", "status"], registry=registry)
        self.grpc = Counter("llmos_grpc_requests", "gRPC requests by method and code.", ["method", "code"], registry=registry)
        self.evictions = self._count("llmos_model_evictions", "Unloads of a dynamic model, to make room for another.")
        self._http: dict[tuple[str, int], Counter] = {}
        self._engines: dict[str, list[Engine | GenerationEngine]] = {}
        self.response_cache_failures = Counter(
            "llmos_response_cache_failures", "Uses of the Redis of the response cache that failed or took too long.", registry=registry
        )
        self.dropped_lines = Counter("llmos_log_lines_dropped", "Log lines that nobody read in time.", registry=registry)
        self.health_value = Gauge("llmos_health_value", "Metrics of the health rules.", ["metric"], registry=registry)
        self.rule_active = Gauge("llmos_health_rule_active", "Whether a health rule acts, 0 or 1.", ["rule", "action"], registry=registry)
        acted = ["rule", "action", "state", "dry_run"]
        self.health_actions = Counter("llmos_health_actions", "What health rules have begun and ended.", acted, registry=registry)
        self.webhook_failures = Counter("llmos_health_webhook_failures", "Events that the webhook did not take.", registry=registry)
        self.running = Gauge("llmos_num_requests_running", "Requests that have begun to run.", _MODEL, registry=registry)
        self.waiting = Gauge("llmos_num_requests_waiting", "Requests that wait for their first batch.", _MODEL, registry=registry)
        self.success = Counter("llmos_request_success", "Ended requests by reason.", [*_MODEL, "finished_reason"], registry=registry)
        self.rejected = Counter("llmos_request_rejected", "Requests refused with a full queue.", _MODEL, registry=registry)
        self.prompt_tokens = self._count("llmos_prompt_tokens", "Tokens of embedded texts, and of prompts.")
        self.generation_tokens = self._count("llmos_generation_tokens", "Generated tokens.")
        self.cache_queries = self._count("llmos_prefix_cache_queries", "Tokens of prompts that were looked up in the prefix cache.")
        self.cache_hits = self._count("llmos_prefix_cache_hits", "Tokens of prompts that were found in the prefix cache.")
        self.response_cache_queries = self._count("llmos_response_cache_queries", "Requests that were looked up in the response cache.")
        self.response_cache_hits = self._count("llmos_response_cache_hits", "Requests that were answered from the response cache.")
        self.preemptions = self._count("llmos_num_preemptions", "Sequences that lost their cache blocks and were computed again.")
        self.cache_usage = Gauge("llmos_kv_cache_usage_perc", "Share of cache blocks in use, 0 to 1.", _MODEL, registry=registry)
        self.ttft = self._times("llmos_time_to_first_token_seconds", "From submission to the first token of a request.")
        self.inter_token = self._times("llmos_inter_token_latency_seconds", "From one token of a sequence to the next.")
        self.prefill = self._times("llmos_request_prefill_time_seconds", "From the first step of a request to its first token.")
        self.decode = self._times("llmos_request_decode_time_seconds", "From the first token of a request to its end.")
        self.e2e = self._times("llmos_e2e_request_latency_seconds", "From submission to the end of a request.")
        self.queue = self._times("llmos_request_queue_time_seconds", "From submission to the first batch of a request.")
        self.run = self._times("llmos_batch_run_time_seconds", "Run time of one batch.")
        self.batch_size = Histogram("llmos_batch_size", "Rows of one batch.", _MODEL, registry=registry, buckets=_SIZE_BUCKETS)

    def _count(self, name: str, text: str) -> Counter:
        return Counter(name, text, _MODEL, registry=self.registry)

    def _times(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, _MODEL, registry=self.registry, buckets=_TIME_BUCKETS_S)

    def watch(self, engine: Engine | GenerationEngine) -> None:
        """Read an engine's counts on each scrape, until `unwatch`; those of several versions of a model are added up."""
        name = engine.model.name
        engines = self._engines.setdefault(name, [])
        engines.append(engine)
        self.running.labels(name).set_function(lambda: float(sum(each.num_running for each in list(engines))))
        self.waiting.labels(name).set_function(lambda: float(sum(each.num_waiting for each in list(engines))))
        if isinstance(engine, GenerationEngine):
            self.cache_usage.labels(name).set_function(
                lambda: max((each.cache_usage for each in list(engines) if isinstance(each, GenerationEngine)), default=0.0)
            )

    def unwatch(self, engine: Engine | GenerationEngine) -> None:
        """Read an engine's counts no more; its counters stay."""
        name = engine.model.name
        self._engines[name].remove(engine)
        if not self._engines[name]:
            del self._engines[name]
            for gauge in (self.running, self.waiting, self.cache_usage):
                gauge.remove(name)

    def count_http(self, route: str, status: int) -> None:
        """Count a request; the label is resolved once."""
        child = self._http.get((route, status))
        if child is None:
            child = self._http[route, status] = self.http.labels(route, str(status))
        child.inc()

    def render(self) -> bytes:
        """Return the metrics in Prometheus text format."""
        return generate_latest(self.registry)


class ModelMetrics:
    """An engine's observer: the metrics of one model, with labels resolved once."""

    def __init__(self, metrics: Metrics, model_name: str) -> None:
        self._ended = {reason: metrics.success.labels(model_name, reason) for reason in REASONS}
        self._e2e = metrics.e2e.labels(model_name)
        self._queue = metrics.queue.labels(model_name)
        self._run = metrics.run.labels(model_name)
        self._batch_size = metrics.batch_size.labels(model_name)
        self.rejected = metrics.rejected.labels(model_name)
        self.response_cache_queries = metrics.response_cache_queries.labels(model_name)
        self.response_cache_hits = metrics.response_cache_hits.labels(model_name)
        self.prompt_tokens = metrics.prompt_tokens.labels(model_name)

    def on_batch(self, report: BatchReport) -> None:
        self._batch_size.observe(report.rows)
        self._run.observe(report.run_s)

    def on_request(self, report: RequestReport) -> None:
        self._ended[report.reason].inc()
        self._e2e.observe(report.e2e_s)
        if report.queue_s is not None:
            self._queue.observe(report.queue_s)


class GenerationMetrics:
    """A generation engine's observer: the metrics of one language model, with labels resolved once."""

    def __init__(self, metrics: Metrics, model_name: str) -> None:
        self._ended = {reason: metrics.success.labels(model_name, reason) for reason in GENERATION_REASONS}
        self._e2e = metrics.e2e.labels(model_name)
        self._queue = metrics.queue.labels(model_name)
        self._ttft = metrics.ttft.labels(model_name)
        self._inter_token = metrics.inter_token.labels(model_name)
        self._prefill = metrics.prefill.labels(model_name)
        self._decode = metrics.decode.labels(model_name)
        self._step = metrics.run.labels(model_name)
        self._step_tokens = metrics.batch_size.labels(model_name)
        self._preemptions = metrics.preemptions.labels(model_name)
        self._prompt_tokens = metrics.prompt_tokens.labels(model_name)
        self._generation_tokens = metrics.generation_tokens.labels(model_name)
        self._cache_queries = metrics.cache_queries.labels(model_name)
        self._cache_hits = metrics.cache_hits.labels(model_name)
        self.response_cache_queries = metrics.response_cache_queries.labels(model_name)
        self.response_cache_hits = metrics.response_cache_hits.labels(model_name)
        self.rejected = metrics.rejected.labels(model_name)

    def on_step(self, report: StepReport) -> None:
        self._step.observe(report.run_s)
        self._step_tokens.observe(report.num_tokens)
        self._preemptions.inc(report.num_preempted)
        for seconds in report.inter_token_s:
            self._inter_token.observe(seconds)

    def on_generation(self, report: GenerationReport) -> None:
        self._ended[report.reason].inc()
        self._e2e.observe(report.e2e_s)
        self._generation_tokens.inc(report.num_generated_tokens)
        if report.queue_s is None:  # it ended before it ran
            return
        self._queue.observe(report.queue_s)
        self._prompt_tokens.inc(report.num_prompt_tokens)
        self._cache_queries.inc(report.num_prompt_tokens)
        self._cache_hits.inc(report.num_cached_tokens)
        if report.ttft_s is not None:
            self._ttft.observe(report.ttft_s)
            self._prefill.observe(report.ttft_s - report.queue_s)
            self._decode.observe(report.e2e_s - report.ttft_s)
