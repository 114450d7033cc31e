"""Numbers, durations and metrics as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping

# The metrics to watch, in this order, and what they are called beside a progress bar.
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
    """Four digits that matter: `0.6931`, `12.35`, `1234`, `1e-05`."""
    value = float(value)
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.0f}" if abs(value) >= 1000 or value.is_integer() else f"{value:.4g}"


def show_figures(figures: Mapping[str, float]) -> str:
    """Those that matter most, by short names; all of them where none is known."""
    known = {short: figures[name] for name, short in SHOWN.items() if name in figures}
    figures = known or figures
    return "  ".join(f"{name} {show_number(value)}" for name, value in figures.items())
