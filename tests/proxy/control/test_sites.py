"""From the config to the data plane: which cell, which address, which names, which certificates."""

import ssl
from pathlib import Path

import msgspec
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from balancer.model import Fleet, Instance, Table
from proxy.config import Address, Config, Engine, EngineTls, Model, ServerTls
from proxy.control.sites import assign_cells, build, engine_context, engine_urls, server_context, table
from proxy.core.settings import Limits

CELLS = {"http://a:1": 4, "https://b/x": 7, "https://[::1]:9": 2}
ENGINES = (
    Engine("http://a:1", "a:1", weight=2.0, model="org/Llama", api_key="k"),
    Engine("https://b/x", "b"),
    Engine("https://[::1]:9", "six", tls=EngineTls(server_name="six.example", insecure=True)),
)


def config(*engines: Engine, **changes: object) -> Config:
    made = Config("ams", Address("127.0.0.1", 1), {"llama": Model(engines or ENGINES, aliases=("gpt-4o-mini",))})
    return msgspec.structs.replace(made, **changes)


# cells


def test_cells_are_given_in_order() -> None:
    """A new location's engines get the lowest cells."""
    assert {"a": 0, "b": 1, "c": 2} == assign_cells(["a", "b", "c"], {}, set(), 8)


def test_cells_are_kept() -> None:
    """Who stays keeps its cell, whatever its place in the file; who comes takes what became free one reload ago."""
    cells = assign_cells(["c", "d", "a"], {"b": 0, "a": 1, "c": 2}, set(), 8)
    assert {"c": 2, "d": 3, "a": 1} == cells
    assert {**cells, "e": 0} == assign_cells(["c", "d", "a", "e"], cells, set(), 8)


def test_cell_of_a_removed_engine_is_not_given_on_while_busy() -> None:
    """Requests of the former engine still run: their tokens must not count for another."""
    assert {"new": 1} == assign_cells(["new"], {"old": 0}, {0}, 8)


def test_engine_comes_back_to_its_busy_cell() -> None:
    """A busy cell is its own engine's."""
    assert {"a": 3} == assign_cells(["a"], {"a": 3}, {3}, 8)


def test_board_is_full() -> None:
    """More engines than cells is a problem in words."""
    with pytest.raises(ValueError, match="room for 2 engines"):
        assign_cells(["a", "b", "c"], {}, set(), 2)


URLS = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)


@given(st.lists(st.tuples(URLS, st.sets(st.integers(0, 15), max_size=8)), max_size=6))
def test_cells_never_clash(reloads: list[tuple[list[str], set[int]]]) -> None:
    """Over any reloads: each engine one cell, none shared, kept while it stays, none given on at once or while busy."""
    cells: dict[str, int] = {}
    for urls, busy in reloads:
        before, cells = cells, assign_cells(urls, cells, busy, 32)
        assert set(urls) == set(cells)
        assert len(cells) == len(set(cells.values()))
        assert all(0 <= cell < 32 for cell in cells.values())
        kept = {url: cell for url, cell in before.items() if url in cells}
        assert kept == {url: cells[url] for url in kept}
        assert (busy | set(before.values())).isdisjoint(cells[url] for url in cells.keys() - kept.keys())


def test_each_engine_is_named_once() -> None:
    """An engine that serves two models has one cell."""
    both = {"m": Model((Engine("http://a", "a"), Engine("http://b", "b"))), "n": Model((Engine("http://b", "b"),))}
    assert ["http://a", "http://b"] == engine_urls(config(models=both))


# the site


def test_upstreams() -> None:
    """Host, port, path and the engine's own name for the model, from the URL and the config."""
    site = build(config(), CELLS, b"secret")
    plain, tls, six = (site.upstreams["llama"][cell] for cell in (4, 7, 2))
    assert ("a", 1, b"", "org/Llama", "k") == (plain.host, plain.port, plain.prefix, plain.model, plain.api_key)
    assert (None, None) == (plain.tls, plain.server_name)
    assert ("b", 443, b"/x", "llama", None) == (tls.host, tls.port, tls.prefix, tls.model, tls.api_key)
    assert ("::1", 9, "six.example", "six") == (six.host, six.port, six.server_name, six.name)
    assert [4, 7, 2] == [upstream.cell for upstream in (plain, tls, six)]


def test_port_of_plain_http() -> None:
    """80, when the URL names none."""
    site = build(config(Engine("http://a", "a")), {"http://a": 0}, b"")
    assert 80 == site.upstreams["llama"][0].port


def test_names_and_limits() -> None:
    """A model answers to its name and its aliases; limits and secret go through; `created` is a Unix time."""
    site = build(config(limits=Limits(queue=5)), CELLS, b"secret")
    assert {"llama": "llama", "gpt-4o-mini": "llama"} == site.names
    assert ("ams", 5, b"secret") == (site.location, site.limits.queue, site.secret)
    assert site.created > 1_700_000_000


def test_verification() -> None:
    """An engine's certificate is verified, unless the config says otherwise; 1.2 is the least."""
    site = build(config(), CELLS, b"")
    strict, loose = site.upstreams["llama"][7].tls, site.upstreams["llama"][2].tls
    assert strict is not None
    assert loose is not None
    assert (ssl.CERT_REQUIRED, True) == (strict.verify_mode, strict.check_hostname)
    assert (ssl.CERT_NONE, False) == (loose.verify_mode, loose.check_hostname)
    assert ssl.TLSVersion.TLSv1_2 == strict.minimum_version == loose.minimum_version


def test_same_settings_share_a_context() -> None:
    """Authorities are read once, not for each of a thousand engines."""
    engines = [Engine(f"https://{n}", n, tls=EngineTls()) for n in ("a", "b")] + [Engine("https://c", "c")]
    cells = {engine.url: n for n, engine in enumerate(engines)}
    a, b, c = (upstream.tls for upstream in build(config(*engines), cells, b"").upstreams["llama"].values())
    assert a is b
    assert a is not c


def test_authority_of_an_engine(tmp_path: Path) -> None:
    """`ca` replaces the system's authorities; one that cannot be read is an error, and so is one that is none."""
    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(ca))
    assert 1 == len(engine_context(EngineTls(ca=str(ca))).get_ca_certs())
    with pytest.raises(FileNotFoundError):
        engine_context(EngineTls(ca=str(tmp_path / "none.pem")))
    ca.write_text("no certificate")
    with pytest.raises(ssl.SSLError):
        build(config(Engine("https://a", "a", tls=EngineTls(ca=str(ca)))), {"https://a": 0}, b"")


def test_server_context(tmp_path: Path) -> None:
    """TLS 1.2 or newer, HTTP/1.1 only; a key that is another's is an error."""
    paths = []
    for name in ("one", "two"):
        issued = trustme.CA().issue_cert("localhost")
        cert, key = str(tmp_path / f"{name}.pem"), str(tmp_path / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)
        paths.append((cert, key))
    context = server_context(ServerTls(*paths[0]))
    assert (ssl.TLSVersion.TLSv1_2, ssl.PROTOCOL_TLS_SERVER) == (context.minimum_version, context.protocol)
    with pytest.raises(ssl.SSLError):
        server_context(ServerTls(paths[0][0], paths[1][1]))


# the table


def test_first_table() -> None:
    """Before the agent's first word all are ready, with the weights of the file."""
    first = table(config(), CELLS)
    expected = (Instance(4, "a:1", 2.0), Instance(7, "b"), Instance(2, "six"))
    assert Table(0, {"llama": Fleet(expected)}) == first


def test_table_after_a_reload() -> None:
    """What the agent said of an engine that stays is kept, but its weight; a newcomer in a used cell starts anew."""
    known = Instance(4, "a:1", 9.0, ready=False, since=5, kv_use=0.5, background=7, scraped=6)
    gone = Instance(7, "gone", ready=False)
    last = Table(12, {"llama": Fleet((known, gone), reference=1e-4)})
    made = table(config(), CELLS, last)
    expected = (msgspec.structs.replace(known, weight=2.0), Instance(7, "b"), Instance(2, "six"))
    assert Table(12, {"llama": Fleet(expected, reference=1e-4)}) == made


def test_table_of_a_new_model() -> None:
    """A model that the last table did not have gets a fleet of its own."""
    last = Table(3, {"other": Fleet(())})
    assert Table(3, table(config(), CELLS).models) == table(config(), CELLS, last)


def test_tuned_weights() -> None:
    """Hold for whom the config gives the weight that they were found with."""
    engines = (Engine("http://a", "a"), Engine("http://b", "b", weight=2.0), Engine("http://c", "c"))
    config = Config("ams", Address("127.0.0.1", 8080), {"m": Model(engines)})
    found = {"m": {"a": (1.0, 1.5), "b": (1.0, 0.5)}}
    made = table(config, {e.url: n for n, e in enumerate(engines)}, None, found)
    assert [1.5, 2.0, 1.0] == [instance.weight for instance in made.models["m"].instances]
