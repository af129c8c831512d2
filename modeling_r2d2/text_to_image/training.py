"""The training loop: accelerate around it, an average of the weights beside it, checkpoints that continue exactly.

Everything random of a step (timesteps, noise, dropped captions, mirrored pictures) comes from a generator keyed
by seed, step and process, and the order of the samples from the seed: a resumed run equals an uninterrupted one.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from ..inference.finite import to_json
from ..inference.identity import weights_digest
from ..inference.loading import one_line_errors
from ..inference.pickles import refuse_unsafe_pickles
from ..jobs.checkpoints import (
    mark_complete,
    place_checkpoint,
    rotate_checkpoints,
)
from ..jobs.divergence import DivergenceGuard
from ..jobs.outputs import remove_replaced_run
from ..jobs.runs import run_folder
from ..jobs.same_run import (
    describe_data,
    describe_processor,
    note_run,
    plain,
    require_same_run,
)
from ..model.pipeline_text_to_image import R2D2TextToImagePipeline
from ..processing.files.writing import (
    explained,
    make_readable,
    partial_path,
    save_safetensors,
    staged_folder,
)
from .components import choose_trained, merge_lora
from .data import CaptionFeatures, ConditionedUNet, batches
from .objective import diffusion_loss, min_snr_weights, regression_target, signal_to_noise, stratified_timesteps
from .settings import TextToImageSettings

_STATE = "training_state.json"
_AVERAGED = "averaged_weights.safetensors"
#: What a run writes beside the pipeline, and what makes a folder that of an earlier run.
_NEEDS, _HELD = ("training.json", "samples"), ("model_index.json", "checkpoint-*")


def train_text_to_image(
    pipeline: R2D2TextToImagePipeline, pairs: Any, settings: TextToImageSettings, console: Console | None = None
) -> dict[str, Any]:
    """Train a pipeline's UNet (and, if asked, its text encoder) on pairs; write the pipeline to `settings.output`.

    `output` then holds the pipeline with the averaged weights, adapters merged; `training.json` (settings, history
    of the loss); `pytorch_lora_weights.safetensors` of a LoRA run; checkpoints and sheets as asked for.

    Args:
        pipeline: what to begin with; changed in place.
        pairs: `load_pairs`' result, a stream of it, or `EmojiPairs`.

    Returns:
        what `training.json` holds.

    Raises:
        FileExistsError: `output` is in use, and neither `resume` nor `overwrite` was asked for.
        ValueError: no checkpoint to resume from, or one of another run; a scheduler without noise to add.
        NotFiniteError: the run has diverged.
        OSError: another run writes to `output`.
    """
    source = pipeline.config.get("_name_or_path")
    with run_folder(settings.output, settings.overwrite, settings.resume, source, _NEEDS, _HELD) as checkpoint:
        return _Run(pipeline, pairs, settings, console or Console(), checkpoint).run()


class _Run:
    def __init__(
        self, pipeline, pairs, settings: TextToImageSettings, console: Console, checkpoint: Path | None = None
    ) -> None:
        self.pipeline, self.pairs, self.settings, self.console = pipeline, pairs, settings, console
        self.accelerator = Accelerator(mixed_precision=settings.mixed_precision)
        set_seed(settings.seed + self.accelerator.process_index)
        self.scheduler = _training_scheduler(pipeline.scheduler)
        self.identity = self._describe()
        self.guard = DivergenceGuard()
        choose_trained(pipeline, settings.train, settings.text_encoder, settings.lora_rank)
        device = self.accelerator.device
        pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        self.trains_text = settings.text_encoder != "frozen"
        module = ConditionedUNet(pipeline.unet, pipeline.text_encoder if self.trains_text else None)
        module.unet.train()
        if settings.channels_last:
            pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.text_encoder.train(self.trains_text)
        self.named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        self.trained = [parameter for _, parameter in self.named]
        optimizer = torch.optim.AdamW(
            self.trained, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.ema = EMAModel(self.trained, decay=settings.ema_decay, foreach=True)
        self.step, self.elapsed = 0, 0.0
        self.history: list[dict[str, float]] = []
        if checkpoint is not None:
            self._load(checkpoint)
        elif self.accelerator.is_main_process:
            remove_replaced_run(settings.output)
        self.captions = None if self.trains_text else self._caption_features()

    def _describe(self) -> dict[str, Any]:
        """What the trained weights depend on; parts that do not train are known by a digest of their weights."""
        pipeline = self.pipeline
        parts = {"text_encoder": pipeline.text_encoder, **({} if pipeline.vae is None else {"vae": pipeline.vae})}
        return {
            **self.settings.fixed(),
            "processes": self.accelerator.num_processes,
            "unet": plain(dict(pipeline.unet.config)),
            "noise": plain(dict(self.scheduler.config)),
            "weights": {name: weights_digest(part) for name, part in parts.items()},
            **describe_processor(pipeline.tokenizer),
            "data": describe_data(self.pairs),
        }

    def _caption_features(self) -> CaptionFeatures:
        def encode(texts: list[str]) -> Tensor:
            with torch.no_grad():
                return self.pipeline.encode_texts(texts, self.accelerator.device)

        texts = self.pairs.all_texts() if hasattr(self.pairs, "all_texts") else None
        return CaptionFeatures(encode, texts, self.settings.caption_cache_mb)

    # -- the loop -------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        settings, accelerator = self.settings, self.accelerator
        feed = batches(
            self.pairs,
            settings.resolution,
            settings.per_device_train_batch_size,
            seed=settings.seed,
            first=self.step * settings.gradient_accumulation_steps,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            workers=settings.dataloader_num_workers,
            cache_mb=settings.image_cache_mb,
        )
        started, begun_at, losses = time.perf_counter() - self.elapsed, self.step, []
        trained = sum(parameter.numel() for parameter in self.trained)
        self._report(f"{trained / 1e6:.2f} M parameters train, from step {self.step} of at most {settings.max_steps}")
        while self._progress() < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = settings.learning_rate_at(self._progress(ahead=True))
            losses.append(self._one_step(feed))
            self.step += 1
            self.elapsed = time.perf_counter() - started
            if accelerator.num_processes > 1:  # one clock, or the processes would stop at different steps
                self.elapsed = accelerator.reduce(torch.tensor(self.elapsed, dtype=torch.float64), "mean").item()
            if settings.logging_steps and self.step % settings.logging_steps == 0:
                self._log(losses)
                losses = []
            if settings.sample_every and self.step % settings.sample_every == 0:
                self._draw_sheet()
            if settings.save_steps and self.step % settings.save_steps == 0:
                self._save()
        if losses:
            self._log(losses)
        if self.step == begun_at and (kept := self._finished_before()) is not None:
            return kept
        return self._finish(self.step - begun_at)

    def _progress(self, ahead: bool = False) -> float:
        """Share of the run that is over, by steps or by the clock; `ahead`: once the coming step is done."""
        by_steps = (self.step + ahead) / self.settings.max_steps
        limit = self.settings.max_minutes
        return by_steps if limit is None else max(by_steps, self.elapsed / (60 * limit))

    def _one_step(self, feed: Iterator[dict[str, Any]]) -> float:
        settings, parts = self.settings, self.settings.gradient_accumulation_steps
        total = torch.zeros((), device=self.accelerator.device)
        for part in range(parts):
            last = part == parts - 1
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                loss = self._loss(next(feed), part)
                self.guard.note({}, loss)
                self.accelerator.backward(loss / parts)
            total += loss.detach() / parts
        self.accelerator.unscale_gradients()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        scaled = self.accelerator.scaler is not None
        self.guard.check(self.step + 1, self.named, norm, scaled, settings.output)
        if settings.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.trained, settings.max_grad_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.trained)
        return total.item()

    def _generator(self, part: int) -> torch.Generator:
        """Of one micro-batch, on the CPU so that every machine draws the same."""
        key = (self.settings.seed, self.step, part, self.accelerator.process_index)
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
        return torch.Generator().manual_seed(seed)

    def _loss(self, batch: dict[str, Any], part: int) -> Tensor:
        settings, device = self.settings, self.accelerator.device
        generator = self._generator(part)
        count = len(batch["pixels"])
        chances = torch.rand(3, count, generator=generator)
        pixels = batch["pixels"].to(torch.float32) / 127.5 - 1
        if settings.flip:
            mirrored = (chances[0] < settings.flip)[:, None, None, None]
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        clean = self._latents(pixels.to(device), generator)
        texts = [
            "" if drop < settings.caption_dropout else texts[int(choice * len(texts))]
            for texts, drop, choice in zip(batch["texts"], chances[1].tolist(), chances[2].tolist(), strict=True)
        ]
        timesteps = stratified_timesteps(count, self.scheduler.config["num_train_timesteps"], generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        noisy = self.scheduler.add_noise(clean, noise, cast(torch.IntTensor, timesteps))  # of any integers
        if settings.channels_last:
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        prediction = self.module(noisy, timesteps, **self._condition(texts))
        target = regression_target(clean, noise, timesteps, self.scheduler)
        weights = min_snr_weights(
            signal_to_noise(self.scheduler.alphas_cumprod, timesteps),
            settings.min_snr_gamma,
            self.scheduler.config["prediction_type"],
        )
        return diffusion_loss(prediction, target, weights)

    def _condition(self, texts: list[str]) -> dict[str, Tensor]:
        if self.captions is not None:
            return {"states": self.captions(texts)}
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        limit = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        tokens = tokenizer(texts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        return {name: tokens[name].to(self.accelerator.device) for name in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def _latents(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """What is noised: the pixels themselves, or a sample of the VAE's latents."""
        vae = self.pipeline.vae
        if vae is None:
            return pixels
        moments = vae.encode(pixels.to(vae.dtype)).latent_dist
        noise = torch.randn(moments.mean.shape, generator=generator).to(moments.mean)
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return ((moments.mean + moments.std * noise - shift) * vae.config.scaling_factor).float()

    # -- beside the loop ------------------------------------------------------------------------

    def _log(self, losses: list[float]) -> None:
        mean = float(np.mean(losses))
        rate = self.optimizer.param_groups[0]["lr"]
        self.history.append({"step": self.step, "loss": mean, "learning_rate": rate, "seconds": self.elapsed})
        self._report(f"step {self.step}  loss {mean:.4f}  lr {rate:.1e}  {self.elapsed / 60:.1f} min")

    def _report(self, line: str) -> None:
        if self.accelerator.is_main_process:
            self.console.print(line, highlight=False)

    @contextmanager
    def _averaged(self) -> Iterator[R2D2TextToImagePipeline]:
        """The pipeline with the averaged weights, in evaluation mode; afterwards as before."""
        self.ema.store(self.trained)
        self.ema.copy_to(self.trained)
        modules = [self.pipeline.unet, self.pipeline.text_encoder]
        modes = [module.training for module in modules]
        for module in modules:
            module.eval()
        try:
            yield self.pipeline
        finally:
            self.ema.restore(self.trained)
            for module, mode in zip(modules, modes, strict=True):
                module.train(mode)

    def _draw_sheet(self) -> None:
        if not self.accelerator.is_main_process:
            return
        from .evaluation import generate
        from .sheet import sample_sheet

        settings = self.settings
        with self._averaged() as pipeline:
            images = generate(
                pipeline,
                settings.sample_prompts,
                seeds=range(settings.sample_seeds),
                num_inference_steps=settings.sample_steps,
                guidance_scale=settings.guidance_scale,
            )
        with staged_folder(settings.output, "text-to-image") as folder:
            path = folder / "samples" / f"step-{self.step:06d}.png"
            sample_sheet(settings.sample_prompts, images, path, title=f"step {self.step}")

    def _check_weights(self) -> None:
        self.guard.check_weights(self.step, self.accelerator.unwrap_model(self.module), self.settings.output)

    def _save(self) -> None:
        self._check_weights()
        output = self.settings.output
        folder = output / f"checkpoint-{self.step}"
        names = [partial_path(output).name]
        broadcast_object_list(names)
        partial = output / names[0]
        try:
            with explained(folder):
                self.accelerator.save_state(str(partial))
                if self.accelerator.is_main_process:
                    self._finish_checkpoint(partial, folder)
        finally:
            if self.accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _finish_checkpoint(self, partial: Path, folder: Path) -> None:
        """Add the state of the run, mark it as complete, put it in its place, let old ones go."""
        state: dict[str, Any] = {"step": self.step, "elapsed": self.elapsed, "history": self.history}
        # not as an object registered with accelerate: it reads those back as pickles, and runs their code
        state["averaging"] = self.ema.state_dict()
        weights = state["averaging"].pop("shadow_params")
        save_safetensors({str(place): weight for place, weight in enumerate(weights)}, partial / _AVERAGED)
        state["settings"] = self.settings.to_dict()
        note_run(partial, self.identity)
        (partial / _STATE).write_text(json.dumps(state, indent=1, ensure_ascii=False), encoding="utf-8")
        make_readable(partial)
        mark_complete(partial)
        place_checkpoint(partial, folder)
        rotate_checkpoints(folder.parent, folder, self.settings.save_total_limit)

    def _load(self, last: Path) -> None:
        refuse_unsafe_pickles(last)
        require_same_run(last, self.identity, lengthens=False)
        state = json.loads((last / _STATE).read_text(encoding="utf-8"))
        with one_line_errors(last, "checkpoint"):
            self.accelerator.load_state(str(last))
            averaged = load_file(last / _AVERAGED)
            weights = [averaged[str(place)] for place in range(len(averaged))]
            self.ema.load_state_dict({**state["averaging"], "shadow_params": weights})
        self.step, self.elapsed, self.history = state["step"], state["elapsed"], state["history"]

    def _finished_before(self) -> dict[str, Any] | None:
        """What `training.json` holds where the run had ended before it was resumed; the pipeline then is as written."""
        output = self.settings.output
        if not ((output / "model_index.json").is_file() and (output / "training.json").is_file()):
            return None
        self._report(f"nothing to resume: the run in {output} is finished, {self.step} steps")
        self.ema.copy_to(self.trained)
        for part in (self.pipeline.unet, self.pipeline.text_encoder):
            part.eval()
            merge_lora(part)
        return json.loads((output / "training.json").read_text(encoding="utf-8"))

    def _finish(self, steps: int) -> dict[str, Any]:
        """The averaged weights become the pipeline's; write it."""
        self.accelerator.wait_for_everyone()
        settings, pipeline = self.settings, self.pipeline
        self.ema.copy_to(self.trained)
        self._check_weights()
        pipeline.unet.eval()
        pipeline.text_encoder.eval()
        result = {
            "settings": settings.to_dict(),
            "steps": self.step,
            "seconds": round(self.elapsed, 1),
            "trained_parameters": sum(parameter.numel() for parameter in self.trained),
            "threads": torch.get_num_threads(),
            "history": self.history,
        }
        if self.accelerator.is_main_process:
            with staged_folder(settings.output, "text-to-image", last=["model_index.json"]) as folder:
                if settings.train == "lora":
                    _save_adapters(pipeline, folder)
                merge_lora(pipeline.unet)
                merge_lora(pipeline.text_encoder)
                pipeline.save_pretrained(folder)
                text = to_json(result, "training.json", indent=1)
                (folder / "training.json").write_text(text + "\n", encoding="utf-8")
        self._report(f"{steps} steps, {self.elapsed / 60:.1f} minutes; the pipeline is in {settings.output}")
        return result


def _save_adapters(pipeline: R2D2TextToImagePipeline, folder: Path) -> None:
    """The adapters alone, of the UNet and of a text encoder that has some, as `pipe.load_lora_weights(folder)` reads
    them."""
    from peft import get_peft_model_state_dict

    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    layers = {
        f"{name}_lora_layers": get_peft_model_state_dict(module)
        for name, module in parts.items()
        if hasattr(module, "peft_config")
    }
    R2D2TextToImagePipeline.save_lora_weights(str(folder), **layers)


def _training_scheduler(scheduler: Any) -> DDPMScheduler:
    """The noise schedule to train on: the pipeline's own, as DDPM adds it."""
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"{type(scheduler).__name__} has no alphas_cumprod: training needs a DDPM-like scheduler (DDIM, "
            "DPMSolverMultistep, …); the finished pipeline may use another"
        )
    trained = DDPMScheduler.from_config(scheduler.config)
    if not torch.allclose(trained.alphas_cumprod.cpu(), scheduler.alphas_cumprod.cpu().to(torch.float32), atol=1e-6):
        raise ValueError(f"DDPMScheduler reads another noise schedule from the settings of {type(scheduler).__name__}")
    return trained
