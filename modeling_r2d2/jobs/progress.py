"""A progress bar that carries the parts of the loss instead of printing a line per log."""

from transformers.trainer_callback import ProgressCallback

_SHOWN = {
    "loss": "loss",
    "loss_gcpr": "gcpr",
    "loss_tgd": "tgd",
    "loss_fgr": "fgr",
    "loss_mlm": "mlm",
    "loss_fgd": "fgd",
    "ranking_accuracy": "rank-acc",
    "images_per_second": "img/s",
}


def evaluation_line(logs: dict[str, float]) -> str:
    """The figures of an evaluation, without what it took; empty where `logs` holds none."""
    results = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
    skipped = ("runtime", "samples_per_second", "steps_per_second")
    return ", ".join(f"{name} {value:.4g}" for name, value in results.items() if name not in skipped)


class LossProgressCallback(ProgressCallback):
    """Shows loss, its parts and images per second in the bar; evaluation results keep a line of their own."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Update the bar's postfix, or write a line for an evaluation."""
        if self.training_bar is None or not logs:
            return
        shown = {label: f"{logs[name]:.3g}" for name, label in _SHOWN.items() if name in logs}
        if shown:
            self.training_bar.set_postfix(shown, refresh=True)
            return
        if line := evaluation_line(logs):
            self.training_bar.write(f"step {state.global_step}: {line}")
