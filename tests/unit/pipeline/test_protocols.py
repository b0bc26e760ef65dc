"""The protocols end to end on pairs with something to learn: probes with few labels, maps, numbers, and all."""

import json
from itertools import islice

import pytest
import torch

from pipeline.command import exit_code
from pipeline.errors import ConfigError, DataError
from pipeline.evaluate import evaluate, main
from pipeline.report.run_page import write_report
from pipeline.stream.exact import Stream, StreamConfig
from tests.unit.pipeline.exported_runs import make_run
from tests.unit.pipeline.mapped_set import FIELD, FOREST, NO_CLASS, NOT_MEASURED, RIDERS, SEA, make_mapped_set

MODEL = {"image_size": 16, "depth": 2}
SHORT = ["device=cpu", "data.threads=1"]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    return make_mapped_set(tmp_path_factory.mktemp("mapped") / "pairs")


@pytest.fixture
def run(tmp_path, url):
    return make_run(tmp_path, url, MODEL)


def figures(result, key, row="encoder"):
    return {own["modalities"]: own[row][key] for own in result["results"]}


def test_a_probe_with_a_share_of_the_labels_says_what_each_seed_drew(run):
    result, _ = evaluate("linear", str(run), [*SHORT, "probe.labels=0.2", "probe.epochs=5"])
    assert result["splits"]["train"]["samples"] == 38  # of 40: one has no label, one no S1
    assert [own["samples"] for own in result["subsets"]] == [7, 7, 7]
    assert len({own["keys_sha256"] for own in result["subsets"]}) == 3
    assert [own["seed"] for own in result["subsets"]] == [0, 1, 2]
    for row in result["results"]:
        for kind in ("encoder", "random_encoder", "colour_statistics"):
            each = [own["micro"] for own in row[kind]["seeds"]]
            assert row[kind]["micro"] == pytest.approx(sum(each) / 3)
            assert row[kind]["spread"]["micro"]["min"] == min(each)
    again, _ = evaluate("linear", str(run), [*SHORT, "probe.labels=0.2", "probe.epochs=5"])
    assert again == result
    one, _ = evaluate("linear", str(run), [*SHORT, "probe.labels=0.2", "probe.epochs=5", "probe.seeds=[1]"])
    assert one["results"][0]["encoder"]["micro"] == result["results"][0]["encoder"]["seeds"][1]["micro"]


def test_the_untrained_encoder_is_another_with_another_seed_and_is_not_the_trained_one(run):
    first, other = (evaluate("regress", str(run), [*SHORT, f"untrained_seed={seed}"])[0] for seed in (0, 1))
    assert figures(first, "r2") == figures(other, "r2")
    for name, r2 in figures(first, "r2", "random_encoder").items():
        assert r2 != figures(other, "r2", "random_encoder")[name] and r2 != figures(first, "r2")[name]


def test_what_rides_along_is_read_only_where_it_is_asked_for_and_changes_no_order(url):
    config = StreamConfig(url=url, global_batch=8, threads=1)
    with Stream(config) as plain, Stream(config, riders=["reference_map"]) as along:
        for own, other in islice(zip(plain, along, strict=True), 6):
            assert own.keys == other.keys and "reference_map" not in own.arrays and "dem" not in other.arrays
            assert torch.equal(own.arrays["s1"], other.arrays["s1"])
            for key, raster, there in zip(
                other.keys, other.arrays["reference_map"], other.present["reference_map"], strict=True
            ):
                assert there.item() == (key != "pair-0007")
                codes = set(raster.unique().tolist())
                assert codes <= {FIELD, FOREST, NO_CLASS, NOT_MEASURED} if there else codes == {0}


SEGMENT = [*SHORT, "segment.epochs=30", "segment.batch_size=8", "segment.lr=0.05", "segment.inputs=[s1,s1+s2]"]


def test_segmentation_learns_a_map_and_counts_what_it_must(run, capsys):
    assert main(["segment", str(run), *SEGMENT]) == 0
    told = capsys.readouterr().out
    result = json.loads((run / "evaluation" / "segment.json").read_text())
    assert (result["raster"], result["band"]) == ("reference_map", "CLC")
    assert result["classes"] == [FIELD, FOREST, SEA] and result["classes_without_training"] == [SEA]
    assert result["splits"]["train"]["samples"] == 38  # one has no raster, one no S1
    assert result["splits"]["train"]["without_a_raster_or_modality"] == 2
    assert result["splits"]["test"]["pixels"] == 16 * (16 * 16 - 2)  # but for those without a class
    for row in result["results"]:
        for kind in ("encoder", "colour_statistics"):
            assert row[kind]["per_class"][str(SEA)] == 0.0
            assert row[kind]["pixel_accuracy"] > 0.85 > result["constant"]["pixel_accuracy"]
            assert row[kind]["miou"] == pytest.approx(sum(row[kind]["per_class"].values()) / 3)
    assert f"only in the test split, and so missed: {SEA}" in told and "linear on band values (floor)" in told
    again, _ = evaluate("segment", str(run), SEGMENT)
    assert again == result


def test_a_map_that_says_nothing_of_the_pixels_is_not_learnt(tmp_path):
    url = make_mapped_set(tmp_path / "pairs", shuffled_maps=True)
    result, _ = evaluate("segment", str(make_run(tmp_path, url, MODEL)), SEGMENT)
    assert all(row["encoder"]["pixel_accuracy"] < 0.6 for row in result["results"])


def test_codes_that_are_to_be_ignored_are_no_classes(run):
    result, _ = evaluate("segment", str(run), [*SHORT, "segment.epochs=1", f"segment.ignore=[{SEA}]"])
    assert result["classes"] == [FIELD, FOREST] and not {NO_CLASS, NOT_MEASURED} & set(result["classes"])


def test_regression_finds_an_elevation_that_is_linear_in_the_pixels(run, capsys):
    assert main(["regress", str(run), *SHORT]) == 0
    told = capsys.readouterr().out
    result = json.loads((run / "evaluation" / "regress.json").read_text())
    assert (result["number"], result["units"]) == ("mean of DEM", "m")
    assert result["splits"]["train"]["samples"] == 38 and result["splits"]["test"]["samples"] == 16
    assert result["constant"]["r2"] < 0.1 and "regression of mean of DEM (m)" in told
    for name, r2 in figures(result, "r2").items():
        assert r2 > 0.9, name
        floor = next(row for row in result["results"] if row["modalities"] == name)["colour_statistics"]
        assert floor["rmse"] < result["constant"]["rmse"] / 3


def test_the_share_of_a_class_is_a_number_too(run):
    result, _ = evaluate("regress", str(run), [*SHORT, "regress.raster=reference_map", f"regress.code={FOREST}"])
    assert (result["number"], result["units"]) == (f"share of CLC {FOREST}", "share")
    assert all(r2 > 0.9 for r2 in figures(result, "r2").values())
    chosen, _ = evaluate("regress", str(run), [*SHORT, "regress.raster=reference_map"])
    assert chosen["number"] in (f"share of CLC {FOREST}", f"share of CLC {FIELD}")


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("segment", "segment.raster=lulc", r"segment\.raster = lulc: along with .* ride dem, reference_map"),
        ("segment", "segment.band=IGBP", r"reference_map has no band IGBP; it has CLC"),
        ("segment", "segment.inputs=[s3]", r"segment\.inputs names 's3'"),
        ("regress", "regress.code=3", r"the numbers of dem are no classes"),
        ("all", "skip=[fine]", r"skip names 'fine'; evaluations are linear"),
    ],
)
def test_what_is_not_there_is_wrong_usage(run, name, override, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(name, str(run), [*SHORT, override])


def test_a_split_without_rasters_is_named(run):
    with pytest.raises(DataError, match=r"no split 'validation'; it has train, val, test"):
        evaluate("segment", str(run), [*SHORT, "segment.test_split=validation"])


QUICK = [
    *("probe.epochs=1", "probe.seeds=[0]", "knn.neighbours=3", "finetune.epochs=1", "finetune.batch_size=16"),
    *("segment.epochs=1", "reconstruction.pictures=1"),
]


def test_all_makes_what_the_data_set_permits_and_a_joint_table(run, capsys):
    assert main(["all", str(run), *SHORT, *QUICK, "skip=[knn]"]) == 0
    told = capsys.readouterr().out
    joint = json.loads((run / "evaluation" / "all.json").read_text())
    made = ["linear", "finetune", "segment", "regress", "reconstruction"]
    assert joint["made"] == made and list(joint["not_made"]) == ["knn"]
    for name in made:
        assert json.loads((run / "evaluation" / f"{name}.json").read_text())["step"] == joint["step"] == 7
    assert not (run / "evaluation" / "knn.json").exists()
    linear = json.loads((run / "evaluation" / "linear.json").read_text())
    rows = {(row["evaluation"], row["input"], row["figure"]): row for row in joint["rows"]}
    row = rows["linear", "s1", "micro AP"]
    for key, theirs in (("encoder",) * 2, ("random_encoder",) * 2, ("floor", "colour_statistics")):
        assert row[key] == linear["results"][0][theirs]["micro"]
    assert {name for name, _, _ in rows} == set(made)
    assert all(row[key] is not None for row in joint["rows"] for key in ("encoder", "random_encoder", "floor"))
    assert "not made: knn: left out by the setting skip" in told
    page = write_report(run).read_text()
    for shown in ("Fine-tuning", "from random weights", "random encoder (untrained)", "mIoU", "mean of DEM (m)"):
        assert shown in page


def test_all_says_what_a_data_set_does_not_permit_and_why(tmp_path):
    url = make_mapped_set(tmp_path / "pairs", riders=RIDERS[:0], splits={"train": 12, "test": 8})
    result, _ = evaluate("all", str(make_run(tmp_path, url, MODEL)), [*SHORT, *QUICK])
    assert result["made"] == ["linear", "knn", "finetune", "reconstruction"]
    for name in ("segment", "regress"):
        assert "rides nothing that this evaluation needs, nothing at all" in result["not_made"][name]


def test_an_evaluation_of_all_that_can_do_nothing_still_refuses_a_wrong_key(run):
    assert exit_code(main, ["all", str(run), "skipp=[knn]"]) == 2
