"""Text encoding of BERT-base: the package's batches (by length, trimmed) beside padding every text to 64 tokens.

    python benchmarks/text_encoding.py [--quick]

The captions are random Chinese characters of the committed lengths of caption_lengths.json.
"""

import random
import statistics
import sys

import caption_lengths
import torch
from common import Check, Table, arguments, finish, interleave, median, ratio
from torch import Tensor

from modeling_r2d2 import R2D2Config, R2D2Model, R2D2Processor
from modeling_r2d2.inference.encoding import encode_texts
from modeling_r2d2.model.modeling_r2d2 import normalize
from modeling_r2d2.processing.tokenization import build_character_tokenizer

CHARACTERS = [chr(code) for code in range(0x4E00, 0x9FA6)]
#: The image tower is never run here.
NO_VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def captions(lengths: list[int], seed: int = 0) -> list[str]:
    """A text of random Chinese characters for every length."""
    generator = random.Random(seed)
    return ["".join(generator.choices(CHARACTERS, k=length)) for length in lengths]


def setup(text_config: dict) -> tuple[R2D2Model, R2D2Processor]:
    """A model of random weights whose vocabulary holds every character of the captions."""
    torch.manual_seed(0)
    tokenizer = build_character_tokenizer(["".join(CHARACTERS)])
    config = R2D2Config(
        vision_config=NO_VISION,
        text_config={**text_config, "vocab_size": len(tokenizer)},
        cross_encoder_config=None,
    )
    return R2D2Model(config).eval(), R2D2Processor.build(tokenizer)


@torch.no_grad()
def encode_padded(model: R2D2Model, processor: R2D2Processor, texts: list[str], batch_size: int) -> Tensor:
    """What `encode_texts` is measured against: batches in the order of the texts, each padded to 64 tokens."""
    tokens = processor(text=texts, padding="max_length", max_length=64, return_tensors="pt")
    embeds = [
        normalize(model.get_text_features(ids, mask).pooler_output)
        for ids, mask in zip(
            tokens["input_ids"].split(batch_size), tokens["attention_mask"].split(batch_size), strict=True
        )
    ]
    return torch.cat(embeds)


def measure(texts: list[str], text_config: dict, batch_sizes: list[int], rounds: int, quick: bool = False) -> Table:
    """Time both ways, tokenisation included, at each batch size; the claim is about the last, the default."""
    model, processor = setup(text_config)
    own = encode_texts(model, processor, texts, batch_sizes[-1], keep_states=False).embeds
    difference = (own - encode_padded(model, processor, texts, batch_sizes[-1])).abs().max().item()
    contenders = {}
    for size in batch_sizes:
        contenders[f"own {size}"] = lambda size=size: encode_texts(model, processor, texts, size, keep_states=False)
        contenders[f"padded {size}"] = lambda size=size: encode_padded(model, processor, texts, size)
        encode_texts(model, processor, texts[:size], size, keep_states=False)  # warm: a whole round takes a minute
    seconds = interleave(contenders, rounds, warmup=0)
    rows = []
    for size in batch_sizes:
        own, padded = seconds[f"own {size}"], seconds[f"padded {size}"]
        for way, measured in (("sorted by length, trimmed", own), ("padded to 64", padded)):
            speed = len(texts) / median(measured)
            rows.append({"batching": way, "batch": size, "texts/s": speed, "ratio": ratio(padded, measured)})
    lengths = [len(text) for text in texts]
    return Table(
        "text_encoding",
        "Text encoding, BERT-base, float32",
        f"{len(texts)} captions of {min(lengths)}–{max(lengths)} Chinese characters, median "
        f"{statistics.median(lengths):.0f} (`benchmarks/caption_lengths.json`): `encode_texts` of the package and a "
        "plain loop over batches padded to 64 tokens, tokenisation included.",
        {"batching": "", "batch": "d", "texts/s": ".1f", "ratio": ".2f"},
        rows,
        {"texts": len(texts), "layers": model.config.text_config.num_hidden_layers, "rounds": rounds},
        [Check("speed of the package's batching, padding to 64 = 1", rows[-2]["ratio"], 2.2, ">=")],
        [f"largest difference between the two ways' embeddings: {difference:.1e}"],
        quick=quick,
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print, save."""
    options = arguments(__doc__, rounds=5).parse_args(argv)
    torch.set_num_threads(1 if options.quick else options.threads)
    texts = captions(caption_lengths.load())
    if options.quick:
        table = measure(texts[:16], TINY, batch_sizes=[8], rounds=2, quick=True)
    else:
        table = measure(texts, {}, batch_sizes=[64, 256], rounds=options.rounds)
    return finish(table, options.tables)


if __name__ == "__main__":
    sys.exit(main())
