"""The figures of a restoration for the terminal, and where the model stands beside what learns nothing."""

from typing import Any

from pipeline.restore import clouds, speckle


def cloud_table(result: dict[str, Any]) -> list[str]:
    """Scores under the clouds."""
    data_range = result["settings"]["data_range"]
    lines = [
        f"Sentinel-2 under clouds at step {result['step']}: {result['samples']} samples of '{result['split']}', "
        f"{100 * result['cover']:.0f} % of the patches hidden; reflectance, range {data_range:g}, hidden pixels only",
        f"{'filled by':<28} {'PSNR dB':>8} {'SSIM':>7} {'MAE':>8}",
    ]
    for name, title in clouds.TITLES.items():
        row = result["scores"][name]
        lines.append(f"{title:<28} {_psnr(row):>8} {row['ssim']:>7.4f} {row['mae']:>8.5f}")
    bands = list(result["scores"]["model"]["mae_of_band"])
    lines += ["", f"{'MAE of each band':<28} " + " ".join(f"{band:>7}" for band in bands)]
    for name, title in clouds.TITLES.items():
        of_band = result["scores"][name]["mae_of_band"]
        lines.append(f"{title:<28} " + " ".join(f"{of_band[band]:>7.4f}" for band in bands))
    return [*lines, "", *standing(result, clouds.TITLES, clouds.BASELINES, "without_radar"), *_left_out(result)]


def speckle_table(result: dict[str, Any]) -> list[str]:
    """Scores against speckle."""
    data_range = result["settings"]["data_range"]
    lines = [
        f"Sentinel-1 under speckle of {result['looks']:g} looks at step {result['step']}: {result['samples']} samples "
        f"of '{result['split']}', taken for the truth with the speckle that they have; dB, range {data_range:g}",
        f"{'restored by':<28} {'PSNR dB':>8} {'SSIM':>7} {'MAE dB':>7} {'ENL ratio':>10} {'level dB':>9}",
    ]
    for name, title in speckle.TITLES.items():
        row = result["scores"][name]
        enl = "" if row["enl_ratio"] is None else f"{row['enl_ratio']:.2f}"
        level = "" if row["level_db"] is None else f"{row['level_db']:+.2f}"
        lines.append(f"{title:<28} {_psnr(row):>8} {row['ssim']:>7.4f} {row['mae']:>7.3f} {enl:>10} {level:>9}")
    lines.append(
        f"ENL ratio and level: medians over the {result['homogeneous_windows']} windows that vary least in the truth"
    )
    return [*lines, "", *standing(result, speckle.TITLES, speckle.BASELINES, "without_optical"), *_left_out(result)]


def standing(result: dict[str, Any], titles: dict[str, str], baselines: tuple[str, ...], alone: str) -> list[str]:
    """Whether the model is better or worse than the best baseline, and than itself without the other sensor."""
    scores = result["scores"]
    best = max(baselines, key=lambda name: _number(scores[name]))
    lines = []
    for other in (best, alone):
        gain = _number(scores["model"]) - _number(scores[other])
        if scores["model"]["psnr_db"] == scores[other]["psnr_db"]:
            said = "is as good as"
        else:
            said = f"is {abs(gain):.2f} dB {'better' if gain > 0 else 'WORSE'} than"
        which = f"the best that learns nothing ({titles[other]})" if other == best else f"itself, {titles[other][11:]}"
        lines.append(
            f"the model {said} {which}; better in {result['better_than'][other]} of {result['samples']} samples"
        )
    return lines


def _number(row: dict[str, Any]) -> float:
    return float("inf") if row["psnr_db"] is None else float(row["psnr_db"])


def _psnr(row: dict[str, Any]) -> str:
    return "exact" if row["psnr_db"] is None else f"{row['psnr_db']:.2f}"


def _left_out(result: dict[str, Any]) -> list[str]:
    number = result["without_a_sensor"]
    return [f"left out: {number} samples without a sensor"] if number else []
