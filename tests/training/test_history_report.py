"""What is said of a dataset is what is in it."""

from pathlib import Path

import numpy as np
import pytest

from icrl_agents.errors import DatasetError, InputError
from icrl_agents.training.histories import HistoryWriter
from icrl_agents.training.history_report import CURVE_POINTS, plot_histories, report_histories


@pytest.fixture
def known(tmp_path: Path, make_manifest, make_regular) -> Path:
    """Three tasks of two streams: one gets better, one gets worse, one stays as it is; 100 episodes of 5 steps."""
    manifest = make_manifest(tasks=3)
    arrays = make_regular(manifest, 100)
    gain = np.repeat(np.arange(100.0), 5)  # of each step
    arrays["rewards"] = np.stack([gain, gain, -gain, -gain, 0 * gain, 0 * gain]).astype(np.float32)
    arrays["terminated"][:] = False
    arrays["truncated"][:] = np.arange(500) % 5 == 4
    arrays["terminated"][0, 4::10] = True  # every other episode of the first history
    # The first two tasks see one half of the states each, the third a point of the first's.
    side = np.linspace(0, 1, 500)
    arrays["observations"][:] = 0
    arrays["observations"][0:2, :, 0] = side
    arrays["observations"][2:4, :, 0] = 1 + side
    arrays["observations"][4:6, :, 0] = 0.5
    with HistoryWriter.create_or_resume(tmp_path / "known", manifest) as writer:
        writer.append(arrays, {})
        writer.finish([0.0] * 3)
    return tmp_path / "known"


def test_numbers_of_known_histories(known: Path) -> None:
    read: list[int] = []
    report = report_histories(known, on_task=read.append)
    assert read == [1, 2, 3]
    better, worse, same = report.tasks
    assert [task.episodes for task in report.tasks] == [200] * 3
    # the first and last ten episodes' mean rewards are 4.5 and 94.5 a step
    assert (better.first_return, better.last_return) == pytest.approx((5 * 4.5, 5 * 94.5))
    assert (worse.first_return, worse.last_return) == pytest.approx((-5 * 4.5, -5 * 94.5))
    assert (better.monotonicity, worse.monotonicity, same.monotonicity) == pytest.approx((1, -1, 0))
    assert (better.coverage, worse.coverage) == pytest.approx((0.5, 0.5), abs=0.06)  # neighbours share a cell
    assert same.coverage <= 0.06
    assert (better.early_ends, worse.early_ends) == (0.25, 0)
    np.testing.assert_allclose(better.curve, 5 * (2 * np.arange(CURVE_POINTS) + 0.5))
    overall = report.overall()
    assert overall["episodes"] == 600
    assert overall["monotonicity"] == pytest.approx(0)


def test_the_picture(known: Path, tmp_path: Path) -> None:
    report = report_histories(known)
    picture = plot_histories(report, tmp_path / "deep" / "histories.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"expected a name that ends in one of .*\.png"):
        plot_histories(report, tmp_path / "histories.doc")


def test_a_collection_under_way_is_reported_as_far_as_it_is(tmp_path: Path, make_manifest, make_arrays) -> None:
    manifest = make_manifest(tasks=3, streams=1)
    with HistoryWriter.create_or_resume(tmp_path, manifest) as writer:
        with pytest.raises(DatasetError, match="no whole episode yet"):
            report_histories(tmp_path)
        writer.append(make_arrays(manifest, [[3], [], [5]], 5), {})
    report = report_histories(tmp_path)
    assert [task.task for task in report.tasks] == [manifest.tasks[0], manifest.tasks[2]]
    assert [np.isfinite(task.curve).sum() for task in report.tasks] == [1, 1]
    plot_histories(report, tmp_path / "histories.svg")


def test_damage_is_told(known: Path) -> None:
    shard = known / "shards/00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    with pytest.raises(DatasetError, match=r"00000\.safetensors is damaged: its sha256 is not the manifest's"):
        report_histories(known)
