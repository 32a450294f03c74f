"""The few numbers of an inspection that stand beside their figures on its page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitrail.report.inspection import Facts
from vitrail.report.terminal import percent


def of_finding(part: str, summary: dict[str, Any]) -> Facts:
    """Terms and values for people, of a part's summary."""
    return _FACTS[part](summary) if part in _FACTS else []


def _of_distance(summary: dict[str, Any]) -> Facts:
    by_layer = summary["layer_mean_pixels"]
    rank = summary["rank_correlation_with_depth"]
    return [
        ("First layer", f"{by_layer[0]:.0f} px, heads from {_range(summary, 0)}"),
        ("Last layer", f"{by_layer[-1]:.0f} px, heads from {_range(summary, -1)}"),
        ("Uniform attention", f"{summary['uniform_pixels']:.0f} px"),
        ("Rank correlation with depth", "none" if rank is None else f"{rank:+.2f}"),
    ]


def _range(summary: dict[str, Any], layer: int) -> str:
    return f"{summary['layer_least_pixels'][layer]:.0f} to {summary['layer_most_pixels'][layer]:.0f}"


def _of_positions(summary: dict[str, Any]) -> Facts:
    shares = {
        "Same row explains": "row",
        "Same column explains": "column",
        "Distance explains": "distance",
        "All three explain": "together",
        "Distance in any shape": "any_distance",
        "Row and column offsets in any shape": "any_offset",
    }
    measured = [("Measured", f"{summary['kind']} of {summary['scheme']}")]
    return measured + [(name, percent(summary[key])) for name, key in shares.items() if summary[key] is not None]


def _of_cost(summary: dict[str, Any]) -> Facts:
    low, high = summary["attention_share"]
    facts = [("Attention's share of operations", f"{percent(low)} at the fewest patches, {percent(high)} at the most")]
    for name, key in (("Operations grow", "flops"), ("Time grows", "seconds")):
        if (fitted := summary[key]) is not None:
            facts.append((f"{name} with N to the power", f"{fitted['slope']:.2f} over all"))
    return facts


def _of_entropy(summary: dict[str, Any]) -> Facts:
    by_layer, uniform = summary["layer_mean_entropy"], summary["uniform_entropy"]
    sharpest = summary["sharpest_head"]
    facts = [
        ("First layer", f"{by_layer[0]:.1f} nats"),
        ("Last layer", f"{by_layer[-1]:.1f} nats"),
        ("Uniform attention", f"{uniform:.1f} nats"),
        ("Sharpest", f"head {sharpest['head']} of layer {sharpest['layer']}, {sharpest['entropy']:.1f} nats"),
    ]
    if summary["special_tokens"]:
        given, even = summary["layer_mean_to_special"], summary["uniform_share_of_special"]
        said = f"{percent(given[0])} in the first layer, {percent(given[-1])} in the last; {percent(even)} if even"
        facts.append(("Patches give special tokens", said))
    return facts


def _of_filters(summary: dict[str, Any]) -> Facts:
    return [
        (f"The first {summary['components']} explain", percent(summary["explained_together"])),
        ("Components for 90 %", f"{summary['components_for_90']} of {summary['components_in_all']}"),
    ]


def _of_components(summary: dict[str, Any]) -> Facts:
    return [
        ("The first three explain", ", ".join(percent(share) for share in summary["explained_by_first_three"])),
        ("Effective rank", f"{summary['effective_rank']:.1f} of {summary['width']}"),
        ("Components for 90 %", f"{summary['components_for_90_percent']}"),
    ]


def _of_norms(summary: dict[str, Any]) -> Facts:
    first, largest = summary["first_layer_with_outliers"], summary["largest_ratio"]
    share = percent(summary["outlier_share"][-1])
    facts = [("Outliers", "none" if first is None else f"from layer {first} on, {share} of the last layer's patches")]
    return facts + [("Largest in the last layer", f"{ratio:.1f} times the median") for ratio in largest[-1:] if ratio]


def _of_similarity(summary: dict[str, Any]) -> Facts:
    steps = [step for step in summary["next_layer"] if step is not None]
    facts = [("Neighbouring layers", f"{min(steps):.2f} to {max(steps):.2f}")] if steps else []
    if (ends := summary["first_and_last"]) is not None:
        facts.append(("First and last layer", f"{ends:.2f}"))
    return facts


def _of_equivariance(summaries: dict[str, Any]) -> Facts:
    facts = [("Pictures", str(next(iter(summaries.values()))["images"]))]
    for name, summary in summaries.items():
        errors = {"half a cell": summary["half_cell"], "a whole cell": summary["whole_cell"]}
        said = [
            f"{found['error']:.2f} at {cell}" for cell, found in errors.items() if found and found["error"] is not None
        ]
        facts += [(name, ", ".join(said))] if said else []
    return facts


def _of_receptive(summaries: dict[str, Any]) -> Facts:
    facts = [("Pictures", str(next(iter(summaries.values()))["images"]))]
    for name, summary in summaries.items():
        half, most = summary["last"]["radius_50"], summary["last"]["radius_90"]
        facts.append((name, f"last layer: half within {half:.0f} px, nine tenths within {most:.0f} px"))
    return facts


_FACTS: dict[str, Callable[[dict[str, Any]], Facts]] = {
    "attention-distance": _of_distance,
    "attention-entropy": _of_entropy,
    "position-similarity": _of_positions,
    "patch-filters": _of_filters,
    "patch-components": _of_components,
    "token-norms": _of_norms,
    "layer-similarity": _of_similarity,
    "equivariance": _of_equivariance,
    "receptive-field": _of_receptive,
    "cost": _of_cost,
}
