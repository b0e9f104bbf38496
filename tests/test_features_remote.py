"""Features at a URL: the same rows as in a folder, fetched piece by piece, checked; on a real S3 server where there is one."""

import importlib.util
import json

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kerastl
from kerastl.errors import ArgumentError, BackendError, StoreDamagedError, StoreError
from kerastl.features import extraction, remote
from kerastl.features.plan import CacheOptions
from kerastl.features.store import Store
from kerastl.models import freezing
from kerastl.training import session as session_module
from tests import models
from tests.models import twins

QUIET = {"verbose": 0}


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 64 images of the tiny model: 32 at a time, closed by the chunk that makes them this large."""
    monkeypatch.setattr("kerastl.features.store.SHARD_BYTES", 1200)


@pytest.fixture(scope="module")
def s3():
    """The address of a server that speaks S3, with an empty bucket, on this machine."""
    for name in ("moto", "flask", "s3fs"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: `make test-ray` brings it")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(params=["memory", "file", "s3"])
def url(request, tmp_path):
    places = {"memory": "memory://features", "file": f"file://{tmp_path}/features"}
    place = places[request.param] if request.param in places else request.getfixturevalue("s3") + "/features"
    yield place
    files, path = fsspec.core.url_to_fs(place)
    if files.exists(path):
        files.rm(path, recursive=True)


def images(count=200):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype="uint8"), np.arange(count) % 3


def only_store(url):
    files, path = fsspec.core.url_to_fs(url)
    (folder,) = files.ls(path, detail=False)
    return files, folder


def opened(url, budget=10**9):
    files, folder = only_store(url)
    key = json.loads(files.cat_file(f"{folder}/manifest.json"))["key"]
    return remote.open_store(f"{url}/{folder.rpartition('/')[2]}", key, budget)


@pytest.mark.usefixtures("small_shards")
def test_a_store_at_a_url_has_the_rows_and_shards_of_one_in_a_folder(url, tmp_path):
    model, data = twins()[0], images()
    kerastl.extract_features(data, model, to=url, engine="keras")
    kerastl.extract_features(data, model, to=tmp_path / "local", engine="keras")
    (local,) = [path for path in (tmp_path / "local").iterdir() if path.is_dir()]
    files, folder = only_store(url)
    names = {path.rpartition("/")[2] for path in files.ls(folder, detail=False)}
    assert names == {path.name for path in local.iterdir()}
    assert len(names) > 6
    for name in names - {"manifest.json"}:
        assert files.cat_file(f"{folder}/{name}") == (local / name).read_bytes()


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("url", ["memory", "s3"], indirect=True)
def test_training_finds_what_was_kept(url, monkeypatch):
    model, twin = twins()
    data = images(100)
    kerastl.extract_features(data, model, to=url, validation=images(40))
    monkeypatch.setattr(extraction, "_run", lambda *arguments: pytest.fail("the trunk ran again"))
    arguments = {"validation_data": images(40), "epochs": 2, "shuffle": False, **QUIET}
    history = session_module.fit(model, *data, cache=url, **arguments).history
    monkeypatch.undo()
    plain = session_module.fit(twin, *data, cache=False, **arguments).history
    assert history["val_loss"] == pytest.approx(plain["val_loss"], abs=2e-3)


@pytest.mark.usefixtures("small_shards")
def test_both_phases_find_what_was_kept_for_them(data, monkeypatch):
    url, (model, twin) = "memory://both", twins(models.flat)
    held = (data[0][:, ::-1], data[1])
    kerastl.extract_features(data, model, to=url, last_blocks=1, validation=held)
    monkeypatch.setattr(extraction, "_run", lambda *arguments: pytest.fail("the trunk ran again"))
    kerastl.transfer_learn(twin, data, held, last_blocks=1, head_epochs=1, fine_tune_epochs=1, cache=url, **QUIET)


@pytest.mark.usefixtures("small_shards")
def test_any_engine_will_do_for_auto_at_a_url(monkeypatch):
    """What is best on the machine that extracts says nothing of the one that trains."""
    url, model, data = "memory://engines", twins()[0], images(64)
    monkeypatch.setattr("kerastl.features.litert._pays", lambda *_: False)
    kerastl.extract_features(data, model, to=url)
    monkeypatch.setattr("kerastl.features.litert._pays", lambda *_: True)
    monkeypatch.setattr(extraction, "_run", lambda *arguments: pytest.fail("the trunk ran again"))
    session_module.fit(model, *data, cache=url, **QUIET)


@pytest.mark.usefixtures("small_shards")
def test_extraction_goes_on_after_the_last_whole_shard(monkeypatch):
    url, model, data, runs = "memory://stopped", twins()[0], images(), []
    original = extraction._run

    def run(*arguments):
        if len(runs) == 2:
            raise KeyboardInterrupt
        runs.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(extraction, "_run", run)
    with pytest.raises(KeyboardInterrupt):
        kerastl.extract_features(data, model, to=url)
    monkeypatch.setattr(extraction, "_run", lambda *arguments: runs.append(arguments[-1]) or original(*arguments))
    kerastl.extract_features(data, model, to=url)
    assert runs == sorted(set(runs))
    assert len(runs) > 3


def make_remote_store(url, rows=200):
    kerastl.extract_features(images(rows), twins()[0], to=url, engine="keras")


@pytest.mark.usefixtures("small_shards")
def test_a_damaged_file_is_found_when_it_is_fetched(url):
    make_remote_store(url)
    files, folder = only_store(url)
    name = f"{folder}/features_0-00001.npy"
    content = bytearray(files.cat_file(name))
    content[-1] ^= 1
    files.pipe_file(name, bytes(content))
    with opened(url) as store:
        store.read("labels", slice(None))
        store.read("features_0", [0])
        with pytest.raises(StoreDamagedError, match=r"features_0-00001\.npy: its checksum is wrong"):
            store.read("features_0", slice(None))
    files.rm(name)
    with opened(url) as store, pytest.raises(StoreDamagedError, match="0 bytes"):
        store.read("features_0", slice(None))


@pytest.mark.usefixtures("small_shards")
def test_a_small_budget_holds_few_files_and_gives_the_same_rows(monkeypatch):
    url, fetched = "memory://budget", []
    make_remote_store(url)
    original = remote.read_file
    monkeypatch.setattr(remote, "read_file", lambda place, name: fetched.append(name) or original(place, name))
    with opened(url) as whole, opened(url, budget=6000) as parts:
        assert len(whole.shard_ends) == 0 < len(parts.shard_ends)
        rows = np.random.default_rng(0).integers(0, 200, 500)
        np.testing.assert_array_equal(whole.read("features_0", rows), parts.read("features_0", rows))
        fetched.clear()
        order = parts.shuffled(np.random.default_rng(0))
        for start in range(0, len(order), 8):
            parts.read("features_0", order[start : start + 8])
        assert len(fetched) <= 1.5 * len(set(fetched))  # about once an epoch
    assert sorted(order) == list(range(200))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_a_shuffled_order_has_every_image_once_and_few_shards_at_a_time(images, at_once, views, seed):
    store = Store({}, sum(images) * views, {}, None, lambda: None)
    store.shard_ends, store.shards_at_once = np.cumsum(images)[:-1] * views, at_once
    order = store.shuffled(np.random.default_rng(seed), views)
    assert sorted(order) == list(range(sum(images)))
    shards = np.repeat(np.arange(len(images)), images)[order]
    spans = [(np.flatnonzero(shards == one).min(), np.flatnonzero(shards == one).max()) for one in range(len(images))]
    open_at = [sum(first <= place <= last for first, last in spans) for place in range(len(order))]
    assert max(open_at) <= at_once


def test_without_shards_the_order_is_numpys_own():
    store = Store({}, 50, {}, None, lambda: None)
    np.testing.assert_array_equal(store.shuffled(np.random.default_rng(3)), np.random.default_rng(3).permutation(50))


def test_says_what_it_needs(data, tmp_path):
    tf = pytest.importorskip("tensorflow")
    model = models.compiled(freezing.freeze(models.nested()))
    with pytest.raises(StoreError, match=r"nowhere://x/train-.* can't be used"):
        session_module.fit(model, *data, cache="nowhere://x", **QUIET)
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
    with pytest.raises(StoreError, match="can be read from anywhere"):
        session_module.fit(model, dataset, cache="memory://dataset", **QUIET)
    with pytest.raises(ArgumentError, match="a folder that they all reach"):
        CacheOptions(engine="ray")
    with pytest.raises(ArgumentError, match="workers"):
        CacheOptions(folder=tmp_path, workers=0)
    if importlib.util.find_spec("ray") is None:
        with pytest.raises(BackendError, match=r"kerastl\[ray\]"):
            kerastl.extract_features(data, model, to=tmp_path / "f", engine="ray")
