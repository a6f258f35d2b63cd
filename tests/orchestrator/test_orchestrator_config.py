import dataclasses

import pytest
from orchestrator_samples import MASKED, WIDE, pipeline, wide_pipeline, write_config

from distree.errors import BundleError, ConfigError
from distree.thresholds import NEVER
from orchestrator.config import load_config
from orchestrator.pipeline_spec import check_thresholds, load_spec


def load(path):
    return load_spec(load_config(path).pipelines[0])


def test_the_bundles_calibrated_defaults_hold_where_nothing_else_is_given(tmp_path):
    path = write_config(tmp_path)
    config, pipeline = load_config(path), load(path)
    assert (config.site, config.store.path) == ("lab", tmp_path / "state" / "orchestrator.db")
    assert (pipeline.name, pipeline.exits) == ("fashion", 3)
    assert (pipeline.plan.epoch, pipeline.plan.model) == (0, "tiny")
    assert (pipeline.plan.criterion, pipeline.plan.thresholds) == ("max_softmax", (0.9, 0.8))
    assert len(pipeline.plan.revision) == 12


def test_a_relative_default_counts_from_the_files_folder_too(tmp_path):
    path = write_config(tmp_path)
    path.write_text("site: lab\npipelines: [{name: fashion, bundle: tiny}]\n")
    assert load_config(path).store.path == tmp_path / "state" / "orchestrator.db"


def test_criterion_and_thresholds_can_be_given(tmp_path):
    path = write_config(tmp_path, extra=", criterion: margin, thresholds: [0.5, 0.25]")
    assert load(path).plan.criterion == "margin"
    assert load(path).plan.thresholds == (0.5, 0.25)


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (", thresholds: [0.5]", "thresholds: 1 given for 3 exits; give 2, one per exit but the last"),
        (", criterion: max_sofmax, thresholds: [0.5, 0.5]", "unknown criterion 'max_sofmax'.*max_softmax"),
        (", criterion: margin", "calibrated for max_softmax; give thresholds for margin"),
        (", thresholds: [0.5, .inf]", "finite|expected"),
        (", goal: {accuracy_drop: 1%}, thresholds: [0.5, 0.5]", "the goal tunes them; .* goal.tuner: static"),
        (
            ", goal: {accuracy_drop: 1%, tuner: best}",
            r"orchestrator\.yaml:5: pipelines\[0\].goal.tuner: expected one of",
        ),
        (", origins: [cam1]", "origins: says whose audits count, and without a goal there are none; add a goal"),
        (", largest_share: 50%", "largest_share: says whose audits count"),
        (", goal: {accuracy_drop: 1%}, origins: [Cam 1]", "origins"),
        (", goal: {accuracy_drop: 1%}, largest_share: 0%", "largest_share: 0% would let no audit count"),
        (
            ", goal: {accuracy_drop: 1%}, origins: [a, b, c], largest_share: 30%",
            "largest_share: 30% of 3 origins is less than all audits; choose at least 34%",
        ),
        (", treshold: [0.5, 0.5]", r"orchestrator\.yaml:5.*treshold"),
        ("}\n  - {name: fashion, bundle: tiny", "fashion given twice"),
        ("}\n  - {name: Fashion, bundle: tiny", r"orchestrator\.yaml:6.*'Fashion' is not an id"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(tmp_path, extra, told):
    path = write_config(tmp_path, extra=extra)
    with pytest.raises(ConfigError, match=told):
        load(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("site: lab\npipelines: []\n", "at least one"),
        ("site: Lab!\npipelines: [{name: a, bundle: tiny}]\n", "not an id"),
        (
            "site: lab\npipelines: [{name: a, bundle: tiny}]\nstore: {max_mb: 0}\n",
            "max_mb: 0 is out of range; choose at least 1",
        ),
        ("site: lab\npipelines: [{name: a, bundle: tiny}]\nstore: {telemetry_days: 0}\n", "choose a value above 0"),
        ("site: lab\n", "pipelines"),
    ],
)
def test_the_file_is_read_strictly(tmp_path, text, told):
    path = tmp_path / "orchestrator.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_config(path)


def test_a_missing_bundle_is_a_bundles_error(tmp_path):
    path = write_config(tmp_path)
    configured = dataclasses.replace(load_config(path).pipelines[0], bundle="nowhere-to-be-found")
    with pytest.raises(BundleError, match="nowhere-to-be-found"):
        load_spec(configured)


def wide(tmp_path, extra=""):
    path = tmp_path / "orchestrator.yaml"
    path.write_text(f"site: lab\npipelines: [{{name: p, bundle: {WIDE}{extra}}}]\n")
    return load(path)


def test_a_wide_bundles_thresholds_for_missing_branches_are_planned(tmp_path):
    made = wide(tmp_path)
    assert made.branches == (2, 2, 2)
    assert [row.missing for row in made.plan.masked] == [(0,), (1,)]
    assert made.plan.masked == made.masked
    assert all(len(row.thresholds) == 2 for row in made.plan.masked)
    # Thresholds of one's own, of the bundle's criterion, leave those in force.
    assert wide(tmp_path, ", thresholds: [0.5, 0.5]").plan.masked == made.masked


def test_they_are_not_planned_for_another_criterion(tmp_path):
    made = wide(tmp_path, ", criterion: margin, thresholds: [0.5, 0.5]")
    assert made.plan.masked == ()
    assert made.masked_of("max_softmax") == made.masked != ()


def test_a_chain_has_none(tmp_path):
    made = load(write_config(tmp_path))
    assert (made.branches, made.masked, made.plan.masked) == ((0, 0, 0), (), ())


def test_a_criterion_of_embeddings_needs_wide_stages_and_class_means(tmp_path):
    assert wide(tmp_path, ", criterion: feature_difference, thresholds: [-0.5, -0.5]").plan.criterion
    with pytest.raises(ConfigError, match=r"pipeline fashion: feature_difference .* only wide stages have"):
        load(write_config(tmp_path, extra=", criterion: feature_difference, thresholds: [-0.5, -0.5]"))
    with pytest.raises(ConfigError, match=r"pipeline fashion: feature_difference needs class_means"):
        check_thresholds(wide_pipeline(), "feature_difference", (-0.5, -0.5))
    assert wide_pipeline().masked_of("max_softmax") == MASKED


@pytest.mark.parametrize(
    ("threshold", "said"),
    [
        (float("nan"), "is nan, but scores of margin are between 0 and 1"),
        (90.0, "give 0.9 for 90%"),
        (-1.0, "number between 0 and 1"),
    ],
)
def test_thresholds_must_be_in_the_range_of_their_criterion(threshold, said):
    with pytest.raises(ConfigError, match=f"pipeline fashion: the threshold of exit 1 .*{said}"):
        check_thresholds(pipeline(), "margin", (0.5, threshold))


def test_never_keeps_an_exit_closed(tmp_path):
    assert load(write_config(tmp_path, extra=", thresholds: [0.9, never]")).plan.thresholds == (0.9, NEVER)


@pytest.mark.parametrize(
    ("thresholds", "said"),
    [
        ("[0.9, .inf]", r"thresholds\[1\]: expected a number or 'never', received \.inf"),
        ("[90, 80]", r"exit 0 is 90, but scores of max_softmax are between 0 and 1"),
    ],
)
def test_what_is_no_threshold_is_refused(tmp_path, thresholds, said):
    with pytest.raises(ConfigError, match=said):
        load(write_config(tmp_path, extra=f", thresholds: {thresholds}"))


def test_a_goal_tunes_thresholds_from_none_unless_its_tuner_keeps_given_ones(tmp_path):
    spec = load(write_config(tmp_path, extra=", goal: {accuracy_drop: 1%}"))
    assert (spec.tuned.goal.tuner, spec.plan.thresholds) == ("certified", (NEVER, NEVER))
    kept = load(write_config(tmp_path / "a", extra=", goal: {accuracy_drop: 1%, tuner: static}"))
    assert kept.tuned.thresholds == kept.plan.thresholds == (0.9, 0.8)
    given = load(
        write_config(tmp_path / "b", extra=", thresholds: [0.5, 0.4], goal: {accuracy_drop: 1%, tuner: static}")
    )
    assert given.tuned.thresholds == (0.5, 0.4)
    assert load(write_config(tmp_path / "c")).tuned is None


def test_whose_audits_count_is_part_of_what_a_pipeline_is_tuned_for(tmp_path):
    given = ", goal: {accuracy_drop: 1%}, origins: [a, b], largest_share: 60%"
    tuned = load(write_config(tmp_path, extra=given)).tuned
    assert (tuned.origins, tuned.largest_share) == (("a", "b"), 0.6)
    (tmp_path / "other").mkdir()
    tuned = load(write_config(tmp_path / "other", extra=", goal: {accuracy_drop: 1%}")).tuned
    assert (tuned.origins, tuned.largest_share) == ((), 1.0)
