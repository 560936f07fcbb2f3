"""TLS on both sides, with real processes and the official client."""

import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
import trustme

from tests.support.http import eventually, post_json
from tests.support.servers import Engine, Location

Start = Callable[..., Location]
StartEngine = Callable[..., Engine]
STREAMED = {"max_tokens": 20, "extra_body": {"metadata": {"output_tokens": 20}}}


class Authority:
    """A certificate authority and a pair of files that it can renew."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.cert, self.key = folder / "edge.pem", folder / "edge.key"
        self.renew()

    def renew(self) -> None:
        pair = self.ca.issue_cert("127.0.0.1", "edge.test")
        self.cert.write_bytes(b"".join(pem.bytes() for pem in pair.cert_chain_pems))
        self.key.write_bytes(pair.private_key_pem.bytes())

    def client(self, url: str) -> openai.OpenAI:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return openai.OpenAI(
            base_url=f"{url}/v1", api_key="k", max_retries=0, http_client=httpx2.Client(verify=context, timeout=10)
        )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def location(start_location: Start, start_engine: StartEngine, authority: Authority) -> Location:
    """One engine behind a location that speaks TLS to clients."""
    return start_location({"demo": [start_engine().url]}, tls={"cert": str(authority.cert), "key": str(authority.key)})


def streamed(client: openai.OpenAI) -> int:
    """Pieces of one streamed answer."""
    chunks = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "hi"}], stream=True, **STREAMED  # type: ignore[call-overload]
    )  # fmt: skip
    return sum(bool(chunk.choices[0].delta.content) for chunk in chunks)


def serial(url: str) -> bytes:
    """The certificate that is shown to new connections."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return ssl.get_server_certificate((parts.hostname, parts.port)).encode()


def test_the_official_client_over_tls(location: Location, authority: Authority) -> None:
    """Streamed and not; who does not know the authority is not served."""
    assert location.url.startswith("https://")
    with authority.client(location.url) as client:
        assert 20 == streamed(client)
        whole = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hi"}], max_tokens=3)
        assert whole.usage is not None
        assert whole.usage.completion_tokens <= 3
    stranger = trustme.CA()
    authority.ca = stranger
    with authority.client(location.url) as client, pytest.raises(openai.APIConnectionError):
        streamed(client)
    eventually(lambda: location.outstanding() == 0, "every outstanding count is 0")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_are_refused(location: Location) -> None:
    """Nothing below TLS 1.2, whatever the client would take."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with httpx2.Client(verify=context) as client, pytest.raises(httpx2.ConnectError):
        client.get(f"{location.url}/livez")


def test_certificates_are_read_again(location: Location, authority: Authority) -> None:
    """A reload shows the new certificate to new connections, and old ones go on."""
    before = serial(location.url)
    with authority.client(location.url) as client:
        assert 20 == streamed(client)
        authority.renew()
        post_json(f"{location.admin}/api/reload")
        assert before != serial(location.url)
        assert 20 == streamed(client)


def test_an_engine_behind_tls(
    start_location: Start, start_engine: StartEngine, location: Location, authority: Authority, tmp_path: Path
) -> None:
    """Its certificate is verified: the right authority is served, with another the engine counts as not reachable."""
    authority.ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    folder = tmp_path / "front"
    folder.mkdir()
    engine = {"url": location.url, "kind": "openai", "name": "tls"}
    good = {**engine, "tls": {"ca": str(tmp_path / "ca.pem")}}
    front = start_location({"demo": [good]}, folder=folder)
    with authority.client(front.url) as client:
        assert 20 == streamed(client)
    front.config["models"] = {"demo": {"engines": [{**engine, "tls": {"ca": str(tmp_path / "other.pem")}}]}}
    front.write()
    post_json(f"{front.admin}/api/reload")
    with authority.client(front.url) as client, pytest.raises(openai.APIStatusError) as caught:
        streamed(client)
    assert caught.value.status_code in (502, 503)
