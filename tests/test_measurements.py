"""Measurements in the store: asked once, taken by the real worker's functions, kept, shipped; and what cannot be measured says why."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from serving import ROOT

from regcompare.config import BadInput, RegcompareError, preset
from regcompare.measurements import MEASURES, Measurements, take
from regcompare.runfile import RunFile
from regcompare.store import STALE_AFTER, Store
from regcompare.worker import measure, train_stack

TINY = preset("standard-bn", train_size=200, batch_size=20, epochs=1, seeds=(0, 1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with one tiny run, trained here, weights included."""
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('measured') / 's.db'}")
    run = store.request(TINY)
    store.claim("trainer")
    train_stack(store.url, run.key, 0, "trainer")
    assert store.run(run.key).status == "done"
    return store


@pytest.fixture
def fresh(tmp_path, trained):
    """A copy of that store."""
    store = Store(f"sqlite:///{tmp_path / 's.db'}")
    store.import_file(trained.export_file(TINY.key()))
    return store


def test_asked_taken_kept(fresh):
    found, key = Measurements(fresh), TINY.key()
    assert found.find(key, "train_mode").status == "absent"
    found.ask(key, "train_mode")
    found.ask(key, "train_mode")
    assert found.find(key, "train_mode").status == "queued"
    assert found.claim("me") == (key, "train_mode")
    assert found.claim("you") is None
    assert found.find(key, "train_mode").status == "running"
    measure(fresh.url, key, "train_mode", "me")
    state = found.find(key, "train_mode")
    assert state.status == "done"
    np.testing.assert_allclose(state.arrays["right"], fresh.record(key).final("test_accuracy"))
    assert not found.waiting()


def test_the_oldest_is_taken_first_or_the_one_named(fresh):
    found, key = Measurements(fresh), TINY.key()
    for now, name in enumerate(("sparsity", "silencing", "reestimate"), 1):
        found.ask(key, name, now=now)
    assert found.claim("a", key=key, name="reestimate") == (key, "reestimate")
    assert found.claim("b") == (key, "sparsity")


def test_a_silent_owner_loses_its_claim(fresh):
    found, key, now = Measurements(fresh), TINY.key(), time.time()
    found.ask(key, "sparsity")
    assert found.claim("dead", now)
    found.beat("dead", now + STALE_AFTER)
    assert found.claim("next", now + 1.5 * STALE_AFTER) is None
    assert found.claim("next", now + 3 * STALE_AFTER) == (key, "sparsity")
    found.end("dead", {"late": np.zeros(1)})
    assert found.find(key, "sparsity").status == "running"  # what the first still writes is not taken


def test_what_cannot_be_measured_says_why_and_can_be_tried_again(fresh):
    found, key = Measurements(fresh), TINY.key()
    without = fresh.record(key)
    fresh.delete(key)
    fresh.import_file(without.to_bytes())
    found.ask(key, "silencing")
    found.claim("me")
    measure(fresh.url, key, "silencing", "me")
    state = found.find(key, "silencing")
    assert state.status == "failed"
    assert "weights" in state.error
    assert "\n" not in state.error
    found.ask(key, "silencing")
    assert found.find(key, "silencing").status == "queued"


def test_nothing_to_measure_is_an_end_too(fresh):
    """Else the worker would take it again and again."""
    run = fresh.request(preset("baseline", train_size=100, batch_size=20, epochs=1, seeds=(0,)))
    fresh.claim("trainer")
    train_stack(fresh.url, run.key, 0, "trainer")
    found = Measurements(fresh)
    found.ask(run.key, "variance_shift")
    assert found.claim("me")
    measure(fresh.url, run.key, "variance_shift", "me")
    assert found.find(run.key, "variance_shift").status == "failed"
    assert not found.waiting()


def test_a_net_that_has_nothing_of_the_kind_is_refused(trained):
    record = trained.record(TINY.key(), weights=True)
    batch = record.config.model_copy(update={"input_norm": "batch"})
    with pytest.raises(RegcompareError, match="input_norm must be standard"):
        take(RunFile(record.arrays, record.facts | {"config": batch.model_dump(mode="json")}), "own_statistics")


@pytest.mark.parametrize("name", MEASURES)
def test_every_measurement_can_be_taken(trained, name):
    """On a real net, through the name that pages use; finite where it must be, one value a seed somewhere."""
    arrays = take(trained.record(TINY.key(), weights=True), name)
    assert arrays
    assert any(2 in values.shape for values in arrays.values())
    assert all(np.isfinite(values).all() for values in arrays.values() if values.dtype.kind == "f")


def test_an_unknown_one_is_refused(fresh):
    with pytest.raises(BadInput, match="a measurement must be one of"):
        Measurements(fresh).ask(TINY.key(), "luck")


def test_deleting_a_run_takes_its_measurements_along(fresh):
    found, key = Measurements(fresh), TINY.key()
    found.ask(key, "sparsity")
    fresh.delete(key)
    assert found.find(key, "sparsity").status == "absent"


def test_files_of_measurements_go_round(fresh, tmp_path):
    found, key = Measurements(fresh), TINY.key()
    found.ask(key, "first_filters")
    found.claim("me")
    measure(fresh.url, key, "first_filters", "me")
    before = found.find(key, "first_filters").arrays
    folder = tmp_path / "files"
    folder.mkdir()
    found.export(key, "first_filters", folder)
    (folder / f"{key}.sparsity.safetensors").write_bytes(b"damaged")
    (folder / "0123456789abcdef.sparsity.safetensors").write_bytes(b"of no run here")
    content = fresh.export_file(key)
    fresh.delete(key)
    fresh.import_file(content)
    assert found.import_published(folder) == 1
    after = found.find(key, "first_filters").arrays
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert found.import_published(folder) == 0


def test_imported_by_several_at_once(tmp_path):
    """Every thread and process of a server may be the first to open a fresh store."""
    folder = ROOT / "cache" / "published"
    stores = [Store(f"sqlite:///{tmp_path / 's.db'}") for _ in range(4)]
    stores[0].import_published(folder)
    gate = threading.Barrier(len(stores))

    def load(store):
        gate.wait()
        return Measurements(store).import_published(folder / "measures")

    with ThreadPoolExecutor(len(stores)) as pool:
        counts = list(pool.map(load, stores))
    assert sum(counts) == len(list((folder / "measures").glob("*.safetensors")))


def test_the_published_ones_belong_to_published_runs(tmp_path):
    store = Store(f"sqlite:///{tmp_path / 's.db'}")
    store.import_published(ROOT / "cache" / "published")
    files = list((ROOT / "cache" / "published" / "measures").glob("*.safetensors"))
    assert files
    assert Measurements(store).import_published(ROOT / "cache" / "published" / "measures") == len(files)
