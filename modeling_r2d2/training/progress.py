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
        results = {k.removeprefix("eval_"): v for k, v in logs.items() if k.startswith("eval_")}
        if results:
            skipped = ("runtime", "samples_per_second", "steps_per_second")
            line = ", ".join(f"{k} {v:.4g}" for k, v in results.items() if k not in skipped)
            self.training_bar.write(f"step {state.global_step}: {line}")
