"""Reading from the Hugging Face Hub while downloading: proxies, no network, a branch that moves, wrong digests."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mimo_gguf.conversion.hub import HubUnreachable
from mimo_gguf.conversion.open_model import COPY, STREAM, open_model
from mimo_gguf.core.errors import HubError
from mimo_gguf.core.progress import Silence
from tests.checkpoints import write_checkpoint
from tests.conversion.fake_hub import COMMIT, NEWER_COMMIT, FakeHub, etag, is_large, serve_hub
from tests.conversion.proxy import serve_proxy
from tests.conversion.rude_hub import RudeHub, serve_rude_hub
from tests.conversion.streams import MODEL, TINY, files_of, open_folder, quantize
from tests.store.conftest import point_at

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
STREAMED = replace(STREAM, fetching=TINY)
HOST = "hub.invalid"  # a name that no resolver knows


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RudeHub]:
    write_checkpoint(tmp_path / "served")
    with serve_rude_hub({MODEL: tmp_path / "served"}) as running:
        use(running.endpoint, tmp_path, monkeypatch)
        yield running


def use(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets huggingface_hub ask this address, with a cache of its own; see tests/store/conftest.py."""
    from huggingface_hub import constants

    point_at(endpoint, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def fresh_client() -> Iterator[None]:
    """huggingface_hub's client reads the proxies and certificates of the environment when it is made."""
    from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

    close_session()
    yield
    close_session()


def stream_to(folder: Path) -> dict[str, bytes]:
    with open_model(MODEL, reading=STREAMED) as source:
        quantize(source, folder)
    return files_of(folder)


def expected(folder: Path, scratch: Path) -> dict[str, bytes]:
    with open_folder(folder) as source:
        quantize(source, scratch)
    return files_of(scratch)


# ---- proxies


@pytest.mark.usefixtures("fresh_client")
def test_through_a_proxy(hub: RudeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything, the redirects to storage included, goes through it."""
    with serve_proxy({HOST: hub.port, "localhost": hub.port}) as proxy:
        use(f"http://{HOST}", tmp_path, monkeypatch)
        monkeypatch.setenv("HTTP_PROXY", proxy.address)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert stream_to(tmp_path / "out") == expected(tmp_path / "served", tmp_path / "local")
    assert len(proxy.passed) == len(hub.requests)
    assert {host for _, host in proxy.passed} == {HOST, "localhost"}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
@pytest.mark.usefixtures("fresh_client")
def test_https_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy sees a CONNECT, and no word of what is in it."""
    write_checkpoint(tmp_path / "served")
    with (
        serve_hub({MODEL: tmp_path / "served"}, certified(tmp_path, monkeypatch)) as hub,
        serve_proxy({HOST: hub.port}) as proxy,
    ):
        use(f"https://{HOST}", tmp_path, monkeypatch)
        monkeypatch.setenv("HTTPS_PROXY", proxy.address)
        assert stream_to(tmp_path / "out") == expected(tmp_path / "served", tmp_path / "local")
    assert set(proxy.passed) == {("CONNECT", HOST)}
    assert any("/resolve/" in path for _, path, _ in hub.requests)


def certified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """The context of a server that is `HOST`, whose certificate clients of this test trust."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    words = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        f"/CN={HOST}",
    ]
    made = ["openssl", "req", "-x509", *words, "-addext", f"subjectAltName=DNS:{HOST}", "-keyout", str(key)]
    subprocess.run([*made, "-out", str(certificate)], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.mark.usefixtures("fresh_client")
def test_a_proxy_that_is_gone(hub: RudeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(HubUnreachable, match="could not be reached"):
        open_model(MODEL, reading=STREAMED)
    assert hub.requests == []


# ---- without a network


def test_offline_with_the_checkpoint_in_the_cache(
    hub: RudeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    open_model(MODEL, reading=COPY).close()
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert stream_to(tmp_path / "out") == expected(tmp_path / "served", tmp_path / "local")
    assert hub.requests == []


@pytest.mark.parametrize("in_cache", ["nothing", "the small files", "one of two shards"])
def test_offline_without_all_of_it(
    hub: RudeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_cache: str
) -> None:
    from huggingface_hub import constants, hf_hub_download

    if in_cache != "nothing":
        open_model(MODEL, headers_only=True).close()
    if in_cache == "one of two shards":
        hf_hub_download(MODEL, SHARDS[0])
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE|could not be reached") as caught:
        open_model(MODEL, reading=STREAMED)
    assert caught.value.hint
    assert hub.requests == []


# ---- a branch that moves


def test_a_branch_that_moves_changes_nothing(hub: RudeHub, tmp_path: Path) -> None:
    """All files are of the commit that was found first, whatever is pushed while they are downloaded."""
    write_checkpoint(tmp_path / "pushed", seed=9)
    (tmp_path / "pushed" / "config.json").write_text("{}")

    def push(path: str) -> None:
        if path.endswith(SHARDS[0]) and hub.commit == COMMIT:
            hub.move(MODEL, tmp_path / "pushed")

    hub.on_request = push
    made = stream_to(tmp_path / "out")
    assert hub.commit == NEWER_COMMIT
    assert made == expected(tmp_path / "served", tmp_path / "local")
    assert COMMIT.encode() in made["BF16.gguf"], "the source's address names the commit"


def test_a_branch_that_moved_is_noticed_when_a_run_goes_on(hub: RudeHub, tmp_path: Path) -> None:
    """What an interrupted run has left is of another commit: it starts afresh, and says so."""

    class Interrupting(Silence):
        def update(self, done: object, resumed: object) -> None:
            if hub.sent_bytes > 150_000:
                raise KeyboardInterrupt

    class Listening(Silence):
        def note(self, text: str) -> None:
            notes.append(text)

    notes: list[str] = []
    hub.delays[SHARDS[1]] = 0.05
    with open_model(MODEL, reading=STREAMED) as source, pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path / "out", Interrupting())
    assert list((tmp_path / "out").glob(".*.partial"))
    hub.delays.clear()
    write_checkpoint(tmp_path / "pushed", seed=9)
    hub.move(MODEL, tmp_path / "pushed")
    with open_model(MODEL, reading=STREAMED) as source:
        quantize(source, tmp_path / "out", Listening())
    assert any("an earlier run was of another source" in note for note in notes)
    assert NEWER_COMMIT.encode() in files_of(tmp_path / "out")["BF16.gguf"]


# ---- digests


@pytest.mark.timeout(60)
@pytest.mark.parametrize("wrong", [SHARDS[:1], SHARDS[1:], SHARDS], ids=["first", "last", "both"])
def test_a_wrong_etag_is_an_error_and_no_hang(hub: RudeHub, tmp_path: Path, wrong: tuple[str, ...]) -> None:
    hub.mislabelled |= set(wrong)
    with open_model(MODEL, reading=STREAMED) as source:
        with pytest.raises(HubError, match=f"{wrong[0]}: arrived twice with another digest"):
            quantize(source, tmp_path / "out")
        assert source.arrival is not None
        sizes = {name: (tmp_path / "served" / name).stat().st_size for name in SHARDS}
        assert source.arrival.fetched_bytes == sum(sizes.values()) + sum(sizes[name] for name in wrong)
    assert not list((tmp_path / "out").glob("*.gguf"))


def test_an_etag_that_is_no_digest(hub: RudeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror may have ETags of its own kind."""
    monkeypatch.setattr(
        FakeHub, "etag_of", lambda self, path: f"{len(path.name)}-1234" if is_large(path) else etag(path)
    )
    with pytest.raises(HubError, match="does not state its SHA-256") as caught:
        open_model(MODEL, reading=STREAMED)
    assert "--keep-checkpoint" in str(caught.value.hint)
