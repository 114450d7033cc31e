"""Format numbers, durations and metrics for people."""

from __future__ import annotations

from collections.abc import Mapping

# The metrics beside a progress bar, in this order, and their short names.
SHOWN = {
    "loss": "loss",
    "accuracy": "accuracy",
    "margin": "margin",
    "objective/scores": "score",
    "objective/kl": "KL",
    "objective/entropy": "entropy",
    "completions/mean_length": "length",
    "tokens_per_second": "tok/s",
}


def show_seconds(seconds: float) -> str:
    """`7 s`, `3:07`, `1:03:07`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes = f"{rest // 60:02d}" if hours else f"{rest // 60}"
    return (f"{hours}:" if hours else "") + f"{minutes}:{rest % 60:02d}"


def show_number(value: float) -> str:
    """Up to four significant digits: `0.6931`, `12.35`, `1234`, `1.00e-05`."""
    value = float(value)
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.0f}" if abs(value) >= 1000 or value.is_integer() else f"{value:.4g}"


def show_metrics(metrics: Mapping[str, float]) -> str:
    """The metrics of SHOWN by short names, or all metrics if none is in SHOWN."""
    shown = {short: metrics[name] for name, short in SHOWN.items() if name in metrics} or metrics
    return "  ".join(f"{name} {show_number(value)}" for name, value in shown.items())
