"""Text-to-image: a diffusers pipeline whose prompts are read by R2D2's Chinese text encoder.

The paper names the task and publishes no method; everything here is this project's own extension: a
`UNet2DConditionModel` in pixel or latent space reads the last hidden states of the text tower.

This file is self-contained: `save_pretrained` copies it beside the weights as `pipeline_r2d2.py`, so that a saved
folder loads with `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` where this package is not
installed.
"""

import inspect
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import USE_PEFT_BACKEND, BaseOutput, get_peft_kwargs, logging, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import BertModel, BertTokenizer, PreTrainedModel, ProcessorMixin
from transformers.dynamic_module_utils import get_relative_import_files

logger = logging.get_logger(__name__)

EXAMPLE_DOC_STRING = """
    Example:
        ```py
        >>> from modeling_r2d2 import R2D2TextToImagePipeline

        >>> pipe = R2D2TextToImagePipeline.from_pretrained("runs/text_to_image")
        >>> pipe("一只红色的苹果", num_inference_steps=25).images[0].save("apple.png")
        ```
"""

_OWN_FILE = "pipeline_r2d2.py"


@dataclass
class R2D2TextToImageOutput(BaseOutput):
    """`images`: a list of PIL pictures, or (N, H, W, 3) numpy, or (N, 3, H, W) torch in 0..1, or latents.
    `scores`: (N,) of the ranker for these pictures, None where nothing was ranked."""

    images: list[Image.Image] | np.ndarray | Tensor
    scores: Tensor | None = None


class R2D2TextToImagePipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """Pictures from Chinese prompts by classifier-free guided diffusion.

    Prompts are padded to the tokenizer's length, whatever the batch holds, and padding is hidden from
    cross-attention: a prompt gives the same picture alone and in a batch (with a generator of its own).

    Args:
        text_encoder: R2D2's text tower as a plain `BertModel`; its last hidden states condition the UNet.
        tokenizer: its `BertTokenizer`; `model_max_length` is the length of a prompt.
        unet: reads states as wide as the text encoder's, directly (`cross_attention_dim`) or through its own
            projection (`encoder_hid_dim`).
        scheduler: any diffusers scheduler of `step(model_output, timestep, sample)`.
        vae: decodes latents; None: the UNet works on the pixels themselves, in -1..1.
        ranker: an R2D2 model, which chooses the best of several samples (`rank_images=True`).
        ranker_processor: its processor.

    Raises:
        ValueError: a UNet that does not fit the text encoder or the VAE; a ranker without processor.
    """

    model_cpu_offload_seq: Any = "text_encoder->unet->vae"
    _optional_components = ["vae", "ranker", "ranker_processor"]
    _exclude_from_cpu_offload = ["ranker"]  # its methods are called, not its forward
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(
        self,
        text_encoder: BertModel,
        tokenizer: BertTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | None = None,
        ranker: PreTrainedModel | None = None,
        ranker_processor: ProcessorMixin | None = None,
    ):
        super().__init__()
        _check_fit(text_encoder, unet, vae)
        if ranker is not None and ranker_processor is None:
            raise ValueError("a ranker needs its processor: pass ranker_processor, e.g. AutoProcessor of its folder")
        self.register_modules(
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            vae=vae,
            ranker=ranker,
            ranker_processor=ranker_processor,
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._guidance_scale = 1.0
        self._guidance_rescale = 0.0
        self._cross_attention_kwargs: dict[str, Any] | None = None
        self._num_timesteps = 0
        self._interrupt = False

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent, per side; 1 in pixel space."""
        vae = getattr(self, "vae", None)
        return 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)

    @property
    def guidance_scale(self) -> float:
        """Of the call that runs or ran last; a callback may set `_guidance_scale`."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Guidance costs a second pass of the UNet and is skipped at 1 and below."""
        return self._guidance_scale > 1

    @property
    def guidance_rescale(self) -> float:
        """Share of rescaled guidance of the call that runs or ran last."""
        return self._guidance_rescale

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        """Handed to the UNet's attention processors."""
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the call that runs or ran last."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """A callback may set `_interrupt`: the remaining steps are left out."""
        return self._interrupt

    # -- prompts --------------------------------------------------------------------------------

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Text states that condition the UNet.

        Args:
            prompt: B prompts, or one. None where `prompt_embeds` is given.
            negative_prompt: B, or one for all; None: the empty text, which training drops captions to.
            prompt_embeds: (B, L, D) states that are used as they are. A position that is all zero is padding, and
                cross-attention does not see it.
            negative_prompt_embeds: (B, L, D).
            lora_scale: weight of the text encoder's LoRA adapters, for this call.

        Returns:
            `prompt_embeds` and `negative_prompt_embeds` (None without guidance), (B · num_images_per_prompt, L, D),
            zero at padding.

        Raises:
            ValueError: numbers of prompts and negative prompts that differ.
        """
        device = device or self._execution_device
        if prompt_embeds is None:
            assert prompt is not None  # `check_inputs` refuses a call with neither
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            prompt_embeds = self.encode_texts(prompts, device, lora_scale)
        count = len(prompt_embeds)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            if isinstance(negative_prompt, (list, tuple)):
                if len(negative_prompt) != count:
                    raise ValueError(f"{len(negative_prompt)} negative prompts for {count} prompts")
                negative_prompt_embeds = self.encode_texts(list(negative_prompt), device, lora_scale)
            else:
                negative_prompt_embeds = self.encode_texts([negative_prompt or ""], device, lora_scale)
                negative_prompt_embeds = negative_prompt_embeds.expand(count, -1, -1)
        dtype = prompt_embeds.dtype if self.unet is None else self.unet.dtype
        prompt_embeds = prompt_embeds.to(device, dtype).repeat_interleave(num_images_per_prompt, dim=0)
        if not do_classifier_free_guidance:
            negative_prompt_embeds = None
        if negative_prompt_embeds is not None:
            negative_prompt_embeds = negative_prompt_embeds.to(device, dtype)
            negative_prompt_embeds = negative_prompt_embeds.repeat_interleave(num_images_per_prompt, dim=0)
        return prompt_embeds, negative_prompt_embeds  # diffusers' own tests read the names off this statement

    def encode_texts(self, texts: list[str], device: torch.device, lora_scale: float | None = None) -> Tensor:
        """Last hidden states (T, L, D), L the tokenizer's length, zero at padding. Longer texts are cut, and a warning
        says so."""
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError("this pipeline has no text encoder or tokenizer: pass prompt_embeds (and negative ones)")
        limit = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(texts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt").to(
            device
        )
        # a token covers at least one character, so only longer texts can have been cut
        suspects = [text for text in texts if len(text) > limit - 2]
        lengths = map(len, self.tokenizer(suspects, verbose=False).input_ids if suspects else [])
        cut = [text for text, length in zip(suspects, lengths, strict=True) if length > limit]
        if cut:
            logger.warning(f"cut to {limit} tokens: {len(cut)} of {len(texts)} texts, the first is {cut[0][:40]}…")
        with _scaled_adapters(self.text_encoder, lora_scale):
            states = self.text_encoder(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).last_hidden_state
        return states * tokens["attention_mask"][..., None].to(states.dtype)

    # -- the parts of a call --------------------------------------------------------------------

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        height: int,
        width: int,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        rank_images: bool = False,
        output_type: str = "pil",
    ) -> None:
        """Everything that can be wrong with a call, before anything is computed.

        Raises:
            ValueError: says which argument and what it may be.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("give either prompt or prompt_embeds, and not both")
        if prompt is not None and not isinstance(prompt, (str, list)):
            raise ValueError(f"prompt must be a string or a list of strings, not {type(prompt).__name__}")
        if isinstance(prompt, list) and not (prompt and all(isinstance(text, str) for text in prompt)):
            raise ValueError("prompt must be a list of at least one string, and of strings only")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("give either negative_prompt or negative_prompt_embeds, and not both")
        self._check_states(prompt, prompt_embeds, negative_prompt_embeds)
        factor = self.vae_scale_factor
        if height % factor or width % factor or height < 1 or width < 1:
            raise ValueError(f"height and width must be positive multiples of {factor}, got {height} and {width}")
        unknown = set(callback_on_step_end_tensor_inputs or ()) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs may hold {self._callback_tensor_inputs}, not {sorted(unknown)}"
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type is {output_type!r}; use 'pil', 'np', 'pt' or 'latent'")
        if rank_images:
            if self.ranker is None:
                raise ValueError("rank_images needs a ranker: from_pretrained(…, ranker=…, ranker_processor=…)")
            if prompt is None or output_type == "latent":
                raise ValueError("rank_images compares pictures with prompts: give prompt, and no output_type 'latent'")

    def _check_states(
        self, prompt: str | list[str] | None, prompt_embeds: Tensor | None, negative_prompt_embeds: Tensor | None
    ) -> None:
        """States that are given: (P, L, D), D what the UNet reads, and of both kinds alike."""
        all_states = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        given = {name: tuple(states.shape) for name, states in all_states.items() if states is not None}
        width = None if self.unet is None else self.unet.config.encoder_hid_dim or self.unet.config.cross_attention_dim
        for name, shape in given.items():
            if len(shape) != 3 or (isinstance(width, int) and shape[2] != width):
                raise ValueError(f"{name} is of shape {shape}; it must be (prompts, tokens, {width or 'features'})")
        if prompt is not None and given and self.tokenizer is not None and self.text_encoder is not None:
            length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
            count = 1 if isinstance(prompt, str) else len(prompt)
            given["the states of prompt"] = (count, length, self.text_encoder.config.hidden_size)
        if len(set(given.values())) > 1:
            (first, one), (second, other) = given.items()
            raise ValueError(f"{first} and {second} must have one shape, got {one} and {other}")

    def prepare_latents(
        self,
        count: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """The noise that denoising begins with: (count, C, h, w), scaled as the scheduler wants it.

        Raises:
            ValueError: as many generators as pictures are needed; given latents of another shape.
        """
        shape = (count, self.unet.config.in_channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"{len(generator)} generators for {count} pictures: give one, or one for each picture")
        if latents is None:
            # drawn in float32: a seed gives the same starting noise in every type
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents have the shape {tuple(latents.shape)}, this call needs {shape}")
        return latents.to(device, dtype) * self.scheduler.init_noise_sigma

    def prepare_extra_step_kwargs(self, generator: Any, eta: float) -> dict[str, Any]:
        """What this scheduler's `step` takes of `eta` (DDIM) and `generator`."""
        accepted = inspect.signature(self.scheduler.step).parameters
        return {name: value for name, value in (("eta", eta), ("generator", generator)) if name in accepted}

    def _set_timesteps(self, steps: int, device: torch.device, **custom: Any) -> Tensor:
        custom = {name: value for name, value in custom.items() if value is not None}
        if len(custom) > 1:
            raise ValueError("give either timesteps or sigmas, and not both")
        for name in custom:
            if name not in inspect.signature(self.scheduler.set_timesteps).parameters:
                raise ValueError(
                    f"{type(self.scheduler).__name__} takes no {name} of its own: choose another scheduler"
                )
        self.scheduler.set_timesteps(**(custom or {"num_inference_steps": steps}), device=device)
        return self.scheduler.timesteps

    def decode_latents(self, latents: Tensor, generator: Any = None) -> Tensor:
        """Pictures (N, 3, H, W) in about -1..1; in pixel space the latents are these."""
        if self.vae is None:
            return latents
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        latents = latents / self.vae.config.scaling_factor + shift
        return self.vae.decode(latents.to(self.vae.dtype), return_dict=False, generator=generator)[0]

    def score_images(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """How well pictures fit their prompts, by the ranker: the score of two-stage retrieval that its configuration
        names, cosine / temperature + log-odds of the match probability or cosine + match probability; the cosine alone
        where the ranker is pre-ranking only (PRD2).

        Args:
            images: N pictures.
            prompts: P texts, N a multiple of P: each prompt's pictures stand together.

        Returns:
            (N,) float32 on the CPU.
        """
        ranker, each = self.ranker, len(images) // len(prompts)
        with torch.no_grad():
            pixels = self.ranker_processor(images=list(images), return_tensors="pt")["pixel_values"]
            tokens = self.ranker_processor(text=list(prompts), return_tensors="pt").to(ranker.device)
            pil_images = ranker.get_image_features(pixels.to(ranker.device, ranker.dtype))
            texts = ranker.get_text_features(tokens["input_ids"], tokens["attention_mask"])
            image_embeds = torch.nn.functional.normalize(pil_images.pooler_output.float(), dim=-1)
            text_embeds = torch.nn.functional.normalize(texts.pooler_output.float(), dim=-1)
            text_index = torch.arange(len(prompts), device=ranker.device).repeat_interleave(each)
            scores = (image_embeds * text_embeds[text_index]).sum(dim=-1)
            if ranker.config.cross_encoder_config is not None:
                match = ranker.rank(
                    texts.last_hidden_state,
                    pil_images.last_hidden_state,
                    attention_mask=tokens["attention_mask"],
                    text_index=text_index,
                    image_index=torch.arange(len(images), device=ranker.device),
                    cls_only=True,
                )
                if getattr(ranker.config, "two_stage_score", "fused") == "published":
                    scores = scores + match.match_probability.float()
                else:
                    logits = torch.stack([match.text_match_logits, match.image_match_logits]).float().diff(dim=-1)
                    yes, no = (torch.nn.functional.logsigmoid(d).logsumexp(dim=0)[:, 0] for d in (logits, -logits))
                    scores = scores / ranker.bounded_temperature() + yes - no
        return scores.cpu()

    # -- the call -------------------------------------------------------------------------------

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float = 3.0,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_rescale: float = 0.0,
        cross_attention_kwargs: dict[str, Any] | None = None,
        rank_images: bool = False,
    ) -> R2D2TextToImageOutput | tuple:
        """Draw pictures.

        Args:
            prompt: a text or a list of P texts.
            height: in pixels; default: what the UNet was made for.
            width: in pixels; default: what the UNet was made for.
            num_inference_steps: denoising steps.
            guidance_scale: weight of the prompt against the negative prompt; at most 1: no guidance, half the work.
            negative_prompt: what to lead away from: one text, or P of them; default: the empty text.
            num_images_per_prompt: samples per prompt, S.
            eta: noise of a DDIM step, 0 to 1; other schedulers ignore it.
            generator: one for all pictures, or a list of P · S, which makes every picture independent of the others.
            latents: (P · S, C, h, w) noise to begin with.
            prompt_embeds: (P, L, D), as `encode_prompt` gives them for one image a prompt.
            negative_prompt_embeds: (P, L, D).
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False: a tuple of what is not None.
            callback_on_step_end: called with (pipeline, step, timestep, {tensor}); what it returns replaces tensors.
            callback_on_step_end_tensor_inputs: which tensors it gets, of `_callback_tensor_inputs`.
            timesteps: instead of `num_inference_steps`, where the scheduler takes them.
            sigmas: see `timesteps`.
            guidance_rescale: share of guidance rescaled to the standard deviation without guidance
                (arXiv 2305.08891, section 3.4).
            cross_attention_kwargs: for the UNet's attention processors; `{"scale": s}` is the weight of loaded LoRA
                adapters, those of the text encoder too.
            rank_images: let the ranker choose: of each prompt's S samples only the best is returned.

        Returns:
            `R2D2TextToImageOutput` with P · S pictures, those of a prompt together; P with `rank_images`.

        Raises:
            ValueError: see `check_inputs` and `prepare_latents`.

        Examples:
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        sample_size = self.unet.config.sample_size
        default_height, default_width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        height = height or default_height * self.vae_scale_factor
        width = width or default_width * self.vae_scale_factor
        self.check_inputs(
            prompt,
            height,
            width,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            callback_on_step_end_tensor_inputs,
            rank_images,
            output_type,
        )
        self._guidance_scale = guidance_scale
        self._guidance_rescale = guidance_rescale
        self._cross_attention_kwargs = cross_attention_kwargs
        self._interrupt = False

        device = self._execution_device
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt,
            device,
            num_images_per_prompt,
            self.do_classifier_free_guidance,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            lora_scale=(cross_attention_kwargs or {}).get("scale"),
        )
        schedule = self._set_timesteps(num_inference_steps, device, timesteps=timesteps, sigmas=sigmas)
        latents = self.prepare_latents(
            len(prompt_embeds), height, width, prompt_embeds.dtype, device, generator, latents
        )
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)

        self._num_timesteps = len(schedule)
        with self.progress_bar(total=self._num_timesteps) as progress_bar:
            for step, timestep in enumerate(schedule):
                if self.interrupt:
                    continue
                noise = self._predict(latents, timestep, prompt_embeds, negative_prompt_embeds)
                latents = self.scheduler.step(noise, timestep, latents, **extra_step_kwargs, return_dict=False)[0]
                if callback_on_step_end is not None:
                    tensors: dict[str, Any] = {
                        "latents": latents,
                        "prompt_embeds": prompt_embeds,
                        "negative_prompt_embeds": negative_prompt_embeds,
                    }
                    given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    tensors |= callback_on_step_end(self, step, timestep, given) or {}
                    latents, prompt_embeds = tensors["latents"], tensors["prompt_embeds"]
                    negative_prompt_embeds = tensors["negative_prompt_embeds"]
                progress_bar.update()

        if not bool(latents.isfinite().all()):  # pictures of NaN would be black
            raise FloatingPointError(
                "the UNet's result is NaN or infinite: its weights are damaged, guidance_scale is, or this precision "
                "is too coarse (try torch.float32)"
            )
        scores = None
        if output_type == "latent":
            images = latents
        else:
            images = self.decode_latents(latents, generator)
            if rank_images and prompt is not None:
                prompts = [prompt] if isinstance(prompt, str) else prompt
                samples = self.image_processor.postprocess(images, output_type="pil")
                scores, best = self.score_images(samples, prompts).view(len(prompts), -1).max(dim=1)
                images = images[(best + torch.arange(len(prompts)) * num_images_per_prompt).to(images.device)]
            images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images,) if scores is None else (images, scores)
        return R2D2TextToImageOutput(images=images, scores=scores)

    def _predict(
        self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor, negative_prompt_embeds: Tensor | None
    ) -> Tensor:
        """The UNet's prediction (N, C, h, w), with guidance where it is on: both passes as one batch."""
        negative = negative_prompt_embeds if self.do_classifier_free_guidance else None
        states, sample = prompt_embeds, latents
        if negative is not None:
            states, sample = torch.cat([negative, states]), torch.cat([latents, latents])
        prediction = self.unet(
            self.scheduler.scale_model_input(sample, timestep),
            timestep,
            encoder_hidden_states=states,
            encoder_attention_mask=padding_mask(states),
            cross_attention_kwargs=self.cross_attention_kwargs,
            return_dict=False,
        )[0]
        if negative is None:
            return prediction
        without, towards = prediction.chunk(2)
        prediction = torch.lerp(without, towards, float(self.guidance_scale))
        if self.guidance_rescale:
            dims = list(range(1, prediction.ndim))
            factor = towards.std(dim=dims, keepdim=True) / prediction.std(dim=dims, keepdim=True)
            prediction = torch.lerp(prediction, prediction * factor, float(self.guidance_rescale))
        return prediction

    # -- files ----------------------------------------------------------------------------------

    @classmethod
    def load_lora_into_text_encoder(
        cls,
        state_dict: dict[str, Tensor],
        network_alphas: dict[str, float] | None,
        text_encoder: BertModel,
        prefix: str | None = None,
        *args: Any,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """As of diffusers, which infers formats and ranks from the layer names of CLIP. Here the text encoder is a
        BERT: its adapters are handed on in the one format that has no names of layers in it, with their configuration
        (without one in the file: alpha is the rank, as everywhere in diffusers)."""
        start = f"{prefix or cls.text_encoder_name}."
        own = {name.removeprefix(start): weight for name, weight in state_dict.items() if name.startswith(start)}
        ranks = {name: weight.shape[1] for name, weight in own.items() if name.endswith(".lora_B.weight")}
        if ranks and network_alphas is None and not any(name.startswith(start) for name in metadata or {}):
            config = get_peft_kwargs(ranks, None, own, is_unet=False)
            config |= {"lora_alpha": config["r"], "alpha_pattern": config["rank_pattern"]}  # older versions differ
            metadata = (metadata or {}) | {start + name: value for name, value in config.items()}
        to_diffusers = {".lora_A.": ".lora_linear_layer.down.", ".lora_B.": ".lora_linear_layer.up."}
        for peft_name, diffusers_name in to_diffusers.items():
            own = {name.replace(peft_name, diffusers_name): weight for name, weight in own.items()}
        own = {start + name: weight for name, weight in own.items()}
        kwargs["metadata"] = metadata
        super().load_lora_into_text_encoder(own, network_alphas, text_encoder, prefix, *args, **kwargs)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """As of diffusers. This class is already imported: the folder's copy of its code needs no trust."""
        loaded = super().load_config(*args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if isinstance(config.get("_class_name"), (list, tuple)):
            config["_class_name"] = config["_class_name"][-1]
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, push_to_hub: bool = False, **kwargs: Any):
        """Write the pipeline as a folder that every documented way loads, `trust_remote_code=True` included.

        Beside what diffusers writes the folder holds this file, as `pipeline_r2d2.py`, and `model_index.json`
        names it. A ranker travels with its code and then always needs `trust_remote_code=True`.

        Args:
            args: as of `DiffusionPipeline.save_pretrained`.
            kwargs: as of `DiffusionPipeline.save_pretrained`.

        Raises:
            ValueError: `push_to_hub`: upload the finished folder instead (`hf upload`), or the code would be missing.
        """
        if push_to_hub:
            raise ValueError("save first, then upload the folder: `hf upload USER/NAME FOLDER`")
        super().save_pretrained(save_directory, *args, **kwargs)
        folder = Path(save_directory)
        source = Path(inspect.getfile(type(self)))
        if source.resolve() != (folder / _OWN_FILE).resolve():
            shutil.copyfile(source, folder / _OWN_FILE)
        index_file = folder / self.config_name
        index = json.loads(index_file.read_text(encoding="utf-8"))
        index["_class_name"] = [Path(_OWN_FILE).stem, type(self).__name__]
        for name in ("ranker", "ranker_processor"):
            component = getattr(self, name)
            if component is not None:  # its code lies in its folder, under the module's last name
                index[name] = [type(component).__module__.rpartition(".")[2], type(component).__name__]
                _add_code(type(component), folder / name)
        index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _open_weights(folder)


def _add_code(kind: type, folder: Path) -> None:
    """Put the files of a class's code into a folder that lacks them, as that of a class loaded from such a folder."""
    source = Path(inspect.getfile(kind))
    for path in (source, *map(Path, get_relative_import_files(source))):
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def _open_weights(folder: Path) -> None:
    """Give weights the mode that umask gave the index beside them: safetensors writes for the owner alone."""
    mode = stat.S_IMODE((folder / "model_index.json").stat().st_mode)
    for path in folder.glob("*/*.safetensors"):
        if path.name.startswith(("model", "diffusion_pytorch_model")):
            path.chmod(mode)


def padding_mask(states: Tensor) -> Tensor:
    """(B, L) boolean, False at padding: where a state of (B, L, D) is zero throughout."""
    return (states != 0).any(dim=-1)


@contextmanager
def _scaled_adapters(model: torch.nn.Module, scale: float | None) -> Iterator[None]:
    """The LoRA adapters of `model` at `scale` times their weight; afterwards exactly as they were."""
    if scale is None or not USE_PEFT_BACKEND:
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scale_layer(scale)
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


def _check_fit(text_encoder: Any, unet: Any, vae: Any) -> None:
    if unet is None:
        return
    config = unet.config
    if text_encoder is not None:
        wanted, given = config.encoder_hid_dim or config.cross_attention_dim, text_encoder.config.hidden_size
        if wanted != given:
            raise ValueError(
                f"the UNet reads text states {wanted} wide, the text encoder gives {given}: train a projection "
                "(examples/train_text_to_image.py --pretrained), or choose another pair"
            )
    channels = 3 if vae is None else vae.config.latent_channels
    if config.in_channels != channels:
        space = "in pixel space (there is no VAE)" if vae is None else "in the latent space of this VAE"
        raise ValueError(f"the UNet has {config.in_channels} input channels; {space} it needs {channels}")


__all__ = ["R2D2TextToImageOutput", "R2D2TextToImagePipeline"]
