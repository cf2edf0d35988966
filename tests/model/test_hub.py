"""Downloads, against a small hub of our own that speaks Hugging Face's protocol."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json

import pytest
from aiohttp import web

from ktd.errors import DoesNotFit, ModelUnsupported
from ktd.model.hub import download
from ktd.model.source import folder_or_id

COMMIT = "c" * 40


class Hub:
    """One repository, ``org/model``; ``gated`` and ``sizes`` change how it answers."""

    def __init__(self) -> None:
        self.files = {"config.json": b"{}", "model.safetensors": b"w" * 3000, "x.bin": b"no"}
        self.gated = False
        self.sizes: dict[str, int] = {}
        self.fetched: list[str] = []

    @contextlib.asynccontextmanager
    async def serving(self):
        app = web.Application()
        app.router.add_get("/api/models/{owner}/{name}", self.info)
        app.router.add_get("/api/models/{owner}/{name}/revision/{revision}", self.info)
        app.router.add_get("/api/models/{owner}/{name}/tree/{revision}", self.tree)
        app.router.add_get("/{owner}/{name}/resolve/{revision}/{file}", self.file)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            await runner.cleanup()

    def error(self, code: str, status: int) -> web.Response:
        return web.json_response({"error": code}, status=status, headers={"X-Error-Code": code})

    async def info(self, request: web.Request) -> web.Response:
        if request.match_info["name"] != "model":
            return self.error("RepoNotFound", 404)
        if self.gated:
            return self.error("GatedRepo", 403)
        if request.match_info.get("revision", "main") not in ("main", COMMIT):
            return self.error("RevisionNotFound", 404)
        files = [
            {"rfilename": name, "size": self.sizes.get(name, len(data))}
            for name, data in self.files.items()
        ]
        return web.json_response({"id": "org/model", "sha": COMMIT, "siblings": files})

    async def tree(self, request: web.Request) -> web.Response:
        return web.json_response(
            [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in self.files.items()
            ]
        )

    async def file(self, request: web.Request) -> web.Response:
        name = request.match_info["file"]
        data = self.files[name]
        if request.method == "GET":
            self.fetched.append(name)
        etag = hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        return web.Response(body=data, headers=headers)


@pytest.fixture
async def hub(monkeypatch, tmp_path):
    """The hub, and an environment in which huggingface_hub asks it."""
    hub = Hub()
    async with hub.serving() as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        hub.endpoint = endpoint
        yield hub


async def fetch(tmp_path, repo_id: str = "org/model", revision: str | None = None):
    said: list[str] = []
    folder = await download(
        repo_id, revision=revision, cache_dir=tmp_path / "cache", say=said.append
    )
    return folder, said


class TestDownload:
    async def test_what_is_needed_is_fetched_once(self, hub, tmp_path):
        """Weights and configuration, no pickles; the second time comes from the cache."""
        folder, said = await fetch(tmp_path)
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.json",
            "model.safetensors",
        ]
        assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
        assert said[0] == "Looking for org/model on Hugging Face."
        fetched = len(hub.fetched)
        assert (await fetch(tmp_path))[0] == folder
        assert len(hub.fetched) == fetched

    async def test_offline_uses_the_cache(self, hub, tmp_path, monkeypatch):
        """HF_HUB_OFFLINE is honoured, and so is a hub that cannot be reached."""
        folder, _ = await fetch(tmp_path)
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        assert (await fetch(tmp_path))[0] == folder
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert (await fetch(tmp_path))[0] == folder

    @pytest.mark.parametrize(
        ("offline", "sentence"), [("1", "HF_HUB_OFFLINE is set"), ("", "be reached")]
    )
    async def test_offline_without_a_cache(self, hub, tmp_path, monkeypatch, offline, sentence):
        """One sentence with the cache's place."""
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        with pytest.raises(ModelUnsupported, match=sentence) as caught:
            await fetch(tmp_path)
        assert str(tmp_path / "cache") in str(caught.value)
        assert "\n" not in str(caught.value)

    async def test_not_found_gated_and_unknown_revision(self, hub, tmp_path):
        """Each has its own sentence."""
        with pytest.raises(ModelUnsupported, match="There is no model org/other on Hugging Face"):
            await fetch(tmp_path, "org/other")
        with pytest.raises(ModelUnsupported, match="no revision 'v9'"):
            await fetch(tmp_path, revision="v9")
        hub.gated = True
        with pytest.raises(ModelUnsupported, match="is gated: accept its terms"):
            await fetch(tmp_path)

    async def test_a_full_disk_is_said_before_anything_is_fetched(self, hub, tmp_path):
        """With what it needs and what is free."""
        hub.sizes["model.safetensors"] = 1 << 60
        with pytest.raises(DoesNotFit, match=r"1073741824\.0 GiB more .* GiB are free"):
            await fetch(tmp_path)
        assert hub.fetched == []

    async def test_no_safetensors(self, hub, tmp_path):
        """A repository of pickles."""
        del hub.files["model.safetensors"]
        with pytest.raises(ModelUnsupported, match="no safetensors"):
            await fetch(tmp_path)

    async def test_a_child_that_dies_is_an_error(self, tmp_path):
        """Not a hang, and not a model."""
        with pytest.raises(ModelUnsupported, match="ended without a result"):
            await download(
                "org/model", revision=None, cache_dir=None, say=lambda _: None, command=("false",)
            )

    async def test_cancelling_ends_the_child(self, tmp_path):
        """SIGTERM of the daemon does not wait for gigabytes."""
        script = 'import time; print(\'{"progress": "p"}\', flush=True); time.sleep(600)'
        said = asyncio.Event()
        task = asyncio.create_task(
            download(
                "org/model", revision=None, cache_dir=None,
                say=lambda text: said.set() if text == "p" else None,
                command=("python3", "-c", script),
            )
        )  # fmt: skip
        await asyncio.wait_for(said.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)


class TestSource:
    def test_a_folder_wins_over_an_id(self, tmp_path, monkeypatch):
        """org/model in the current folder is that folder."""
        (tmp_path / "org/model").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert folder_or_id("org/model") == tmp_path / "org/model"
        assert folder_or_id("org/other") == "org/other"

    @pytest.mark.parametrize(
        ("model", "sentence"),
        [
            ("/no/such", "There is no model folder /no/such; check its path."),
            ("./no", "There is no model folder ./no; check its path."),
            ("name", "no Hugging Face id"),
            ("a/b/c", "no Hugging Face id"),
            ("a/..", "no Hugging Face id"),
            ("", "no Hugging Face id"),
        ],
    )
    def test_neither(self, model, sentence, tmp_path, monkeypatch):
        """Named, and no network is asked."""
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelUnsupported, match=sentence.replace(".", r"\.")):
            folder_or_id(model)

    def test_a_file(self, tmp_path):
        """A GGUF, for example."""
        (tmp_path / "m.gguf").write_text(json.dumps({}))
        with pytest.raises(ModelUnsupported, match="is a file"):
            folder_or_id(str(tmp_path / "m.gguf"))
