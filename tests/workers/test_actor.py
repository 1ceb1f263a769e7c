"""The actor without Ray: it delegates, and posts news to its board."""

import pickle
from types import SimpleNamespace

from tests.workers.host.cells import gpt_neox, lease
from workers.actor import DeviceActor
from workers.outcome import Outcome
from workers.progress import Progress


def test_actor_runs_a_lease_and_posts_its_progress(tmp_path, monkeypatch):
    monkeypatch.setattr("workers.host.supervisor._PROGRESS_S", 0.1)
    news: list[tuple[str, Progress]] = []
    board = SimpleNamespace(post=SimpleNamespace(remote=lambda slot, progress: news.append((slot, progress))))
    actor = DeviceActor("node/cpu3", 2**30, board)
    try:
        assert actor.describe().uuid.endswith("-cpu3")
        given = lease(gpt_neox(tmp_path / "model"), length=400)
        attempt = pickle.loads(pickle.dumps(actor.run(given)))
        assert (attempt.outcome, attempt.lease_id) == (Outcome.OK, given.lease_id)
        assert news
        assert {(slot, progress.lease_id) for slot, progress in news} == {("node/cpu3", given.lease_id)}
        assert [p.new_tokens for _, p in news] == sorted(p.new_tokens for _, p in news)
    finally:
        actor._host.close()
