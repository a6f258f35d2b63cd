"""Export of wide networks, on small random ones; these run where the extra `zoo` is installed."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from distree.bundle.loading import load_bundle
from model_zoo.errors import ExportError

DATA = Path(__file__).parents[1] / "data"
IMAGES = 24


@pytest.fixture(scope="module")
def tiny():
    """The module that makes the bundles for tests: networks and calibration images of the right shape."""
    for name in ("torch", "litert_torch", "ai_edge_quantizer"):
        pytest.importorskip(name)
    spec = importlib.util.spec_from_file_location("make_bundles", DATA / "make_bundles.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["make_bundles"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def calibration(tiny):
    return tiny.normalised(tiny.random_images(IMAGES))


def short_network(tiny, calibration, fusion=None):
    """Two wide stages of two branches."""
    import torch

    torch.manual_seed(3)
    branches = [
        tiny.Branch(tiny.Part((3, 4), 2, "embedding", 6), tiny.Part((4, 4), 1, "embedding", 6, last=True))
        for _ in range(2)
    ]
    network = tiny.Wide(branches, [fusion() if fusion else tiny.Fusion(2, 6) for _ in range(2)])
    tiny.settle([network], calibration)
    return network.eval()


def logits_of(network, calibration, missing=()):
    """What torch says: (images, exits, classes)."""
    import torch

    flowing, logits = [calibration] * len(network.branches), []
    with torch.no_grad():
        for depth, fusion in enumerate(network.fusions):
            given = [branch.stages[depth](x) for branch, x in zip(network.branches, flowing, strict=True)]
            embeddings = [g["embedding"] * (b not in missing) for b, g in enumerate(given)]
            logits.append(fusion(*embeddings)["logits"].numpy())
            flowing = [g.get("features") for g in given]
    return np.stack(logits, axis=1)


def check(tiny, network, calibration, stages, folder):
    from model_zoo.evaluation import Collector

    draft = tiny.draft("short", "for a test", stages, folder)
    collector = Collector(draft, tiny.random_images(IMAGES))
    for missing in ((), (0,), (1,)):
        found, expected = collector.collect(missing).logits, logits_of(network, calibration, missing)
        assert np.abs(found - expected).mean() < 0.1 * expected.std(), missing


@pytest.fixture(scope="module")
def exported(tiny, calibration, tmp_path_factory):
    """A network, its stages and their folder."""
    from model_zoo.build.export import export_wide

    network, folder = short_network(tiny, calibration), tmp_path_factory.mktemp("short")
    return network, export_wide(network, calibration, folder), folder


def test_a_wide_network_computes_in_int8_what_it_does_in_torch(tiny, calibration, exported) -> None:
    network, stages, folder = exported
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"stage{k}.{part}.tflite" for k in range(2) for part in ("branch0", "branch1", "fusion")
    )
    assert [(stage.features, [b.features is None for b in stage.branches]) for stage in stages] == [
        (None, [False, False]),
        (None, [True, True]),
    ]
    check(tiny, network, calibration, stages, folder)


def test_multiply_accumulates_are_those_of_the_layers(exported) -> None:
    _, stages, _ = exported
    trunk, embedding, fusion = 4 * 4 * 4 * 27, 16 * 6, 2 * 6 * 6 + 6 * 4
    assert (stages[0].branches[0].macs.trunk, stages[0].branches[0].macs.exit) == (trunk, embedding)
    assert (stages[0].macs.trunk, stages[0].macs.exit) == (2 * trunk, 2 * embedding + fusion)


def test_a_fusion_that_concatenates_at_once_takes_the_branches_scales(tiny, calibration, tmp_path) -> None:
    import torch

    from model_zoo.build.export import export_wide

    class Concatenation(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Linear(12, 4)

        def forward(self, *embeddings):
            return {"logits": self.logits(torch.cat(embeddings, 1))}

    network = short_network(tiny, calibration, Concatenation)
    with torch.no_grad():
        network.branches[1].stages[0].exit.values.weight *= 4
    stages = export_wide(network, calibration, tmp_path)
    scales = [branch.embedding.scale for branch in stages[0].branches]
    assert scales[1] > 2 * scales[0]
    check(tiny, network, calibration, stages, tmp_path)


def test_what_torch_does_not_confirm_is_refused(tiny, calibration, tmp_path, monkeypatch) -> None:
    from model_zoo.build import export

    monkeypatch.setattr(export, "_FLOAT_TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="the conversion went wrong"):
        export.export_wide(short_network(tiny, calibration), calibration, tmp_path)


def test_a_fusion_head_of_other_scales_is_refused(tiny, calibration, tmp_path, monkeypatch) -> None:
    from model_zoo.build import export

    inspect = export.inspect_fusion

    def another_scale(path, branches, macs):
        spec, taken = inspect(path, branches, macs)
        return spec, taken | {"embedding1": dataclasses.replace(taken["embedding1"], scale=9.0)}

    monkeypatch.setattr(export, "inspect_fusion", another_scale)
    with pytest.raises(ExportError, match=r"stage0.branch1.tflite gives .* stage0.fusion.tflite takes"):
        export.export_wide(short_network(tiny, calibration), calibration, tmp_path)


def test_the_bundles_of_the_tests_are_made_by_their_script(tiny, tmp_path) -> None:
    """What is there was made by the script as it is: the same networks, shapes and names."""
    made = tiny.made("tiny-mixed", tmp_path / "tiny-mixed")
    shipped = load_bundle(DATA / "tiny-mixed")
    for one, other in zip(made.stages, shipped.stages, strict=True):
        assert (one.segment, one.macs, len(one.branches)) == (other.segment, other.macs, len(other.branches))
        assert one.logits.scale == pytest.approx(other.logits.scale, rel=1e-3)
    assert made.thresholds == pytest.approx(shipped.thresholds, abs=0.02)
