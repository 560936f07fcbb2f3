from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("hello", "ping", "pong", "digests")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    ping: Ping
    pong: Pong
    digests: Digests
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., digests: _Optional[_Union[Digests, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "location", "node", "nonce", "unix_time")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    UNIX_TIME_FIELD_NUMBER: _ClassVar[int]
    version: int
    location: str
    node: str
    nonce: bytes
    unix_time: int
    def __init__(self, version: _Optional[int] = ..., location: _Optional[str] = ..., node: _Optional[str] = ..., nonce: _Optional[bytes] = ..., unix_time: _Optional[int] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("sent",)
    SENT_FIELD_NUMBER: _ClassVar[int]
    sent: int
    def __init__(self, sent: _Optional[int] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("sent", "received", "answered")
    SENT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    sent: int
    received: int
    answered: int
    def __init__(self, sent: _Optional[int] = ..., received: _Optional[int] = ..., answered: _Optional[int] = ...) -> None: ...

class Digests(_message.Message):
    __slots__ = ("seq", "made", "residency", "models", "instances")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    MADE_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    seq: int
    made: int
    residency: _containers.RepeatedScalarFieldContainer[str]
    models: _containers.RepeatedCompositeFieldContainer[Digest]
    instances: _containers.RepeatedCompositeFieldContainer[Instance]
    def __init__(self, seq: _Optional[int] = ..., made: _Optional[int] = ..., residency: _Optional[_Iterable[str]] = ..., models: _Optional[_Iterable[_Union[Digest, _Mapping]]] = ..., instances: _Optional[_Iterable[_Union[Instance, _Mapping]]] = ...) -> None: ...

class Digest(_message.Message):
    __slots__ = ("model", "work", "capacity", "instances", "running", "kv_tokens", "t0", "c", "kv_c", "accepting")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    T0_FIELD_NUMBER: _ClassVar[int]
    C_FIELD_NUMBER: _ClassVar[int]
    KV_C_FIELD_NUMBER: _ClassVar[int]
    ACCEPTING_FIELD_NUMBER: _ClassVar[int]
    model: str
    work: float
    capacity: float
    instances: int
    running: int
    kv_tokens: int
    t0: float
    c: float
    kv_c: float
    accepting: bool
    def __init__(self, model: _Optional[str] = ..., work: _Optional[float] = ..., capacity: _Optional[float] = ..., instances: _Optional[int] = ..., running: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., t0: _Optional[float] = ..., c: _Optional[float] = ..., kv_c: _Optional[float] = ..., accepting: _Optional[bool] = ...) -> None: ...

class Instance(_message.Message):
    __slots__ = ("name", "prefill", "decode", "requests")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    prefill: int
    decode: int
    requests: int
    def __init__(self, name: _Optional[str] = ..., prefill: _Optional[int] = ..., decode: _Optional[int] = ..., requests: _Optional[int] = ...) -> None: ...
