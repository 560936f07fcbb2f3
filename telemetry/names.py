"""Every metric's name, kind, help, labels and buckets, and every span's attributes, as data. Names stand here and nowhere
else.

Workers send counters as "METRIC_total|VALUES" strings, VALUES being those of its labels with colons between; those
metrics are `COUNTED`.
"""

from typing import NamedTuple


class Metric(NamedTuple):
    name: str
    kind: str  # counter, gauge, histogram
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


DURATION_BUCKETS = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68,
)  # fmt: skip
TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0,
)  # fmt: skip
TPOT_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
OVERHEAD_BUCKETS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
WAIT_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0)
RATIO_BUCKETS = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
LAG_BUCKETS = (0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)

_GEN_AI = ("gen_ai_operation_name", "gen_ai_request_model", "error_type", "location")

DURATION = Metric(
    "gen_ai_server_request_duration_seconds",
    "histogram",
    "From a request's head to the end of its answer",
    _GEN_AI,
    DURATION_BUCKETS,
)
TTFT = Metric(
    "gen_ai_server_time_to_first_token_seconds", "histogram", "From a streamed request's head to its first event",
    (*_GEN_AI, "instance"), TTFT_BUCKETS,
)  # fmt: skip
TPOT = Metric(
    "gen_ai_server_time_per_output_token_seconds", "histogram", "Mean time of an output token after the first",
    (*_GEN_AI, "instance"), TPOT_BUCKETS,
)  # fmt: skip
TOKENS = Metric(
    "headrace_tokens",
    "counter",
    "Tokens by direction: input, output, cached; the class is the tenant's priority",
    ("direction", "model", "tenant_class"),
)
REQUESTS = Metric("headrace_requests", "counter", "Requests that ended", ("route", "code", "outcome"))
OVERHEAD = Metric(
    "headrace_overhead_seconds",
    "histogram",
    "Time spent here: before the engine got the request, and from its first bytes to the client's",
    ("phase",),
    OVERHEAD_BUCKETS,
)
QUEUE_WAIT = Metric(
    "headrace_queue_wait_seconds",
    "histogram",
    "Time in the queue, of requests that waited",
    ("priority",),
    WAIT_BUCKETS,
)
DECISIONS = Metric(
    "headrace_decisions",
    "counter",
    "Routing decisions, by reason and chosen location",
    ("policy", "reason", "location"),
)
ESTIMATE_ERROR = Metric(
    "headrace_estimate_error_ratio", "histogram", "Real over predicted output tokens", ("model",), RATIO_BUCKETS
)
ENGINE = Metric(
    "headrace_engine_phase_seconds",
    "histogram",
    "An attempt's time by the engine's own spans: queue, prefill, decode; network is the rest before the first token",
    ("model", "instance", "phase"),
    WAIT_BUCKETS,
)
LAG = Metric(
    "headrace_event_loop_lag_seconds", "histogram", "Worst delay of a timer in a second", ("worker",), LAG_BUCKETS
)

RETRIES = Metric("headrace_retries", "counter", "Further attempts, by how the one before failed", ("reason",))
BUDGET_EXHAUSTED = Metric("headrace_retry_budget_exhausted", "counter", "Retries that the budget refused", ("reason",))
INTERRUPTIONS = Metric(
    "headrace_stream_interruptions", "counter", "Answers cut after their first byte", ("side", "reason")
)
REJECTS = Metric("headrace_parse_rejects", "counter", "Requests that broke a rule of HTTP", ("rule",))
REFUSED = Metric("headrace_connections_refused", "counter", "Client connections that were refused", ("reason",))
PAUSES = Metric("headrace_accept_pauses", "counter", "Times that accepting was paused", ("reason",))
DROPPED = Metric("headrace_records_dropped", "counter", "Records that no agent could take, or no file", ("reason",))

SPILL = Metric(
    "headrace_spill", "counter", "Requests sent to another location, by what it did: answered, refused, failed",
    ("from", "to", "outcome"),
)  # fmt: skip
SPILL_REFUSED = Metric(
    "headrace_spill_refused",
    "counter",
    "Requests of other locations that were not taken: guard, residency",
    ("from", "to", "reason"),
)
HOPS_REJECTED = Metric("headrace_hops_rejected", "counter", "Hop headers that proved nothing", ("reason",))
MESH_FAILURES = Metric(
    "headrace_mesh_failures", "counter", "Streams of the mesh that could not be, or were ended", ("peer", "reason")
)

SPANS = Metric(
    "headrace_spans", "counter",
    "Spans: exported, failed, dropped (queue full), forwarded (an engine's), unforwarded", ("state",),
)  # fmt: skip

QUEUE_DEPTH = Metric("headrace_queue_depth", "gauge", "Requests that wait", ("priority",))
OUTSTANDING = Metric(
    "headrace_instance_outstanding_tokens", "gauge", "Outstanding work", ("model", "instance", "phase")
)
INFLIGHT = Metric("headrace_instance_inflight_requests", "gauge", "Requests in flight", ("model", "instance"))
WEIGHT = Metric("headrace_instance_weight", "gauge", "Service rate relative to the reference", ("model", "instance"))
STATE = Metric(
    "headrace_instance_state",
    "gauge",
    "1 for the state it is in: ready, ejected or down",
    ("model", "instance", "state"),
)
TTFT_EWMA = Metric(
    "headrace_instance_ttft_ewma_seconds", "gauge", "Moving average of the time to first token", ("model", "instance")
)
CONNECTIONS = Metric("headrace_connections", "gauge", "Open client connections")
CONFIG_INFO = Metric("headrace_config_info", "gauge", "1, with the hash of the config in force", ("hash",))
RECORDS = Metric("headrace_records_kept", "gauge", "Records that can be asked for by their request id")
RELOAD_SUCCESS = Metric("headrace_config_reload_success", "gauge", "1 if the last reload went well, else 0")

PEER_UP = Metric("headrace_peer_up", "gauge", "1 if the other location is on the mesh", ("location",))
PEER_RTT = Metric("headrace_peer_rtt_seconds", "gauge", "Round trip to the other location's mesh", ("location",))
DIGEST_AGE = Metric("headrace_digest_age_seconds", "gauge", "Age of what a location last said", ("from", "to"))

TUNER_UPDATES = Metric(
    "headrace_tuner_updates",
    "counter",
    "Weights changed, by the kind of change: update, rollback, reset",
    ("model", "reason"),
)
TUNER_REJECTED = Metric("headrace_tuner_rejected", "counter", "Weights left as they were", ("model", "reason"))
TUNER_ROLLBACKS = Metric(
    "headrace_tuner_rollbacks", "counter", "Weights set back, after which waits had grown", ("model",)
)
TUNER_AGE = Metric("headrace_tuner_input_age_seconds", "gauge", "Since the tuner last saw a request", ("model",))
TUNER_WEIGHT = Metric(
    "headrace_tuner_weight", "gauge", "The weight that the tuner holds right, in force or not", ("model", "instance")
)

OBSERVED = (
    DURATION, TTFT, TPOT, TOKENS, REQUESTS, OVERHEAD, QUEUE_WAIT, DECISIONS, ESTIMATE_ERROR, ENGINE, LAG,
    SPANS, TUNER_UPDATES, TUNER_REJECTED, TUNER_ROLLBACKS,
)  # fmt: skip
COUNTED = (
    RETRIES, BUDGET_EXHAUSTED, INTERRUPTIONS, REJECTS, REFUSED, PAUSES, DROPPED, SPILL, SPILL_REFUSED, HOPS_REJECTED,
    MESH_FAILURES,
)  # fmt: skip
COLLECTED = (
    QUEUE_DEPTH,
    OUTSTANDING,
    INFLIGHT,
    WEIGHT,
    STATE,
    TTFT_EWMA,
    CONNECTIONS,
    RECORDS,
    CONFIG_INFO,
    RELOAD_SUCCESS,
    PEER_UP,
    PEER_RTT,
    DIGEST_AGE,
    TUNER_AGE,
    TUNER_WEIGHT,
)
ALL = (*OBSERVED, *COUNTED, *COLLECTED)


# Spans: OpenTelemetry's conventions for HTTP and GenAI, and ours under `headrace.`

HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
HTTP_RESENDS = "http.request.resend_count"
URL_PATH = "url.path"
CLIENT_ADDRESS = "client.address"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
PROTOCOL_NAME = "network.protocol.name"
PROTOCOL_VERSION = "network.protocol.version"
ERROR_TYPE = "error.type"

GEN_AI_OPERATION = "gen_ai.operation.name"
GEN_AI_PROVIDER = "gen_ai.provider.name"
GEN_AI_MODEL = "gen_ai.request.model"
GEN_AI_STREAM = "gen_ai.request.stream"
GEN_AI_MAX_TOKENS = "gen_ai.request.max_tokens"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_RESPONSE_ID = "gen_ai.response.id"
GEN_AI_FINISH_REASONS = "gen_ai.response.finish_reasons"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"  # seconds
GEN_AI_INPUT = "gen_ai.input.messages"
GEN_AI_OUTPUT = "gen_ai.output.messages"

LOCATION = "headrace.location"
REQUEST_ID = "headrace.request.id"
OUTCOME = "headrace.outcome"
TENANT = "headrace.tenant"
SAMPLED_FOR = "headrace.sampled"
QUEUE_WAIT_MS = "headrace.queue.wait_ms"
QUEUE_DEPTH_THEN = "headrace.queue.depth"
PRIORITY = "headrace.priority"
ROUTE_POLICY = "headrace.route.policy"
ROUTE_REASON = "headrace.route.reason"
ROUTE_CANDIDATES = "headrace.route.candidates"
ROUTE_SCORES = "headrace.route.scores"
ROUTE_TOKENS = "headrace.route.outstanding_tokens"
ROUTE_WEIGHTS = "headrace.route.weights"
ROUTE_VERSION = "headrace.route.weight_version"
ROUTE_SPILL = "headrace.route.spill"
ATTEMPTS = "headrace.attempts"
TPOT_MS = "headrace.tpot_ms"
INSTANCE = "headrace.instance"
RETRY_REASON = "headrace.retry.reason"
TUNER_KIND = "headrace.tuner.kind"
TUNER_MODE = "headrace.tuner.mode"
TUNER_BEFORE = "headrace.tuner.weight.before"
TUNER_AFTER = "headrace.tuner.weight.after"
TUNER_RATE = "headrace.tuner.seconds_per_token"
TUNER_FLEET = "headrace.tuner.fleet_seconds_per_token"
TUNER_SAMPLES = "headrace.tuner.samples"
TUNER_REASON = "headrace.tuner.reason"
SPILL_FROM = "headrace.spill.from"
SPILL_TO = "headrace.spill.to"
SPILL_HOP = "headrace.spill.hop"

FIRST_TOKEN = "first_token"  # noqa: S105  events
CLIENT_GONE = "client_gone"
UPSTREAM_RESET = "upstream_reset"
STREAM_STALL = "stream_stall"

ENGINE_QUEUE = "gen_ai.latency.time_in_queue"  # of the engines' own spans; seconds
ENGINE_PREFILL = "gen_ai.latency.time_in_model_prefill"
ENGINE_DECODE = "gen_ai.latency.time_in_model_decode"

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "generate_content",
}
PRIORITIES = ("critical", "normal", "batch")
POLICY = "p2c"  # what decides in the proxy; the simulator knows others
