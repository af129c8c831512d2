"""The fast ranker against the model's own, one pair at a time, and against the authors' scores."""

import pytest
import torch

from modeling_r2d2 import R2D2Model
from modeling_r2d2.inference.attention import FoldedAttention
from modeling_r2d2.inference.packing import pack, unpack
from modeling_r2d2.inference.ranker import FastRanker, RankedTexts
from modeling_r2d2.model.modeling_r2d2 import normalize
from tests import golden
from tests.tiny import tiny_batch, tiny_config

TEXTS, IMAGES = 7, 6
LOGITS = ("text_match_logits", "image_match_logits")
LENGTHS = torch.tensor([9, 4, 6, 4, 9, 3, 5])


def random_model(tower="clip", layers=3, **kwargs):
    config = tiny_config(tower, **kwargs)
    config.cross_encoder_config.num_hidden_layers = layers
    torch.manual_seed(1)
    model = R2D2Model(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6)
        elif name.endswith("bias"):  # biases are zero in a fresh model, and then hide mistakes
            parameter.data.normal_(std=0.3)
    return model


def random_prd2():
    return R2D2Model(tiny_config(ranker=False))


def encoded(model):
    """States of texts of several lengths and of images, and the match output of every pair, one at a time."""
    batch = tiny_batch(pairs=TEXTS, length=9, masked=False)
    mask = (torch.arange(9) < LENGTHS.unsqueeze(1)).long()
    with torch.no_grad():
        texts = model.get_text_features(batch["input_ids"] * mask, mask).last_hidden_state
        images = model.get_image_features(batch["pixel_values"][:IMAGES]).last_hidden_state
        images = images / images.std()  # a fresh ResNet's are so large that texts hardly matter beside them
        alone = [
            [model.rank(texts[t : t + 1, : LENGTHS[t]], images[i : i + 1]) for i in range(IMAGES)] for t in range(TEXTS)
        ]
    return RankedTexts(texts, LENGTHS), images, alone


def expected(alone, text_index, image_index, name):
    return torch.stack([getattr(alone[t][i], name)[0] for t, i in zip(text_index, image_index, strict=True)])


def index_of(pairs):
    return torch.tensor([t for t, _ in pairs]), torch.tensor([i for _, i in pairs])


PAIRS = {
    "every pair": [(t, i) for t in range(TEXTS) for i in range(IMAGES)],
    "one text": [(2, i) for i in (5, 0, 3, 1, 4)],
    "one image": [(t, 4) for t in range(TEXTS)],
    "a text each": [(6, 1), (0, 2), (3, 2), (5, 0), (1, 5)],
    "shared and single": [(4, 3), (1, 0), (4, 0), (4, 1), (2, 2), (4, 5), (4, 4), (0, 4)],
    "one pair": [(5, 5)],
}


@pytest.fixture(scope="module", params=["clip", "resnet"])
def case(request):
    model = random_model(request.param)
    return model, *encoded(model)


@pytest.mark.parametrize("chunk", [1, 3, 50])
@pytest.mark.parametrize("keys_values", [False, True])
@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS)
def test_equals_the_model(case, pairs, keys_values, chunk):
    model, texts, states, alone = case
    ranker = FastRanker(model, chunk)
    text_index, image_index = index_of(pairs)
    found = ranker.logits(texts, ranker.prepare(states, keys_values), text_index, image_index)
    for name in LOGITS:
        want = expected(alone, text_index, image_index, name)
        assert len(pairs) == 1 or want.std(dim=0).min() > 1e-3, "the pairs must differ"
        torch.testing.assert_close(getattr(found, name), want, atol=2e-5, rtol=1e-5)
    want = expected(alone, text_index, image_index, "match_probability")
    torch.testing.assert_close(found.match_probability, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("keys_values", [False, True])
def test_few_layers(layers, keys_values):
    model = random_model(layers=layers)
    texts, states, alone = encoded(model)
    ranker = FastRanker(model, 3)
    text_index, image_index = index_of(PAIRS["every pair"])
    found = ranker.logits(texts, ranker.prepare(states, keys_values), text_index, image_index)
    for name in LOGITS:
        torch.testing.assert_close(
            getattr(found, name), expected(alone, text_index, image_index, name), atol=2e-5, rtol=1e-5
        )


@pytest.mark.parametrize("pays", [True, False])
def test_folded_and_projected_give_one_answer(case, monkeypatch, pays):
    model, texts, states, alone = case
    calls = []
    for name in ("folding_pays", "context_folding_pays"):
        monkeypatch.setattr(FoldedAttention, name, lambda *_, name=name: calls.append(name) or pays)
    for pairs in ("every pair", "a text each", "one image"):
        text_index, image_index = index_of(PAIRS[pairs])
        ranker = FastRanker(model, 4)
        found = ranker.logits(texts, ranker.prepare(states), text_index, image_index)
        for name in LOGITS:
            want = expected(alone, text_index, image_index, name)
            torch.testing.assert_close(getattr(found, name), want, atol=2e-5, rtol=1e-5)
    assert set(calls) == {"folding_pays", "context_folding_pays"}


def test_one_encoder_alone(case):
    model, texts, states, alone = case
    ranker = FastRanker(model)
    index = index_of(PAIRS["a text each"])
    found = ranker.logits(texts, ranker.prepare(states), *index, image_text=False)
    assert found.image_match_logits is None
    want = expected(alone, *index, "text_match_logits").softmax(dim=-1)[:, 1]
    torch.testing.assert_close(found.match_probability, want, atol=1e-5, rtol=0)


def test_work_is_done_once(case, monkeypatch):
    """Pictures are prepared once, a text's first self-attention is made once for each chunk of its candidates."""
    model, texts, states, _ = case
    ranker = FastRanker(model, 2)
    images = ranker.prepare(states, keys_values=True)
    rows = []
    first = ranker.text_image[0]
    own = first.own
    monkeypatch.setattr(
        first, "own", lambda states, *rest, **more: rows.append(len(states)) or own(states, *rest, **more)
    )
    monkeypatch.setattr(ranker.image_text[0], "own", None)  # would fail: it was run by `prepare`
    ranker.logits(texts, images, *index_of([(3, i) for i in range(IMAGES)]))
    assert rows == [1]
    view = images.take(torch.tensor([1, 2, 3]))
    assert view.states.data_ptr() == images.states[1].data_ptr()
    assert len(images.take(torch.tensor([2, 2, 2]))) == 1


def test_refusals():
    with pytest.raises(ValueError, match="pre-ranking only"):
        FastRanker(random_prd2())
    model = random_model()
    layer = model.text_image_encoder.layers[0].self_attn

    class Adapted(torch.nn.Linear):
        pass

    layer.q_proj = Adapted(32, 32)
    with pytest.raises(TypeError, match="merge"):
        FastRanker(model)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0), ("float16", 2e-2), ("int8", 0.1)])
def test_precisions(case, precision, tolerance):
    """What is kept comes back within half a step of its precision, and the probabilities move little."""
    model, texts, states, alone = case
    packed = pack({"states": states}, precision)
    back = unpack(packed, torch.float32, "cpu")["states"]
    step = {"float32": 0, "float16": states.abs() * 2**-11, "int8": states.abs().amax(-1, keepdim=True) / 127 / 2}
    assert ((back - states).abs() <= step[precision] + 1e-7).all()
    index = index_of(PAIRS["every pair"])
    ranker = FastRanker(model)
    found = ranker.logits(texts, ranker.prepare(back), *index).match_probability
    want = expected(alone, *index, "match_probability")
    assert (found - want).abs().max() <= tolerance + 1e-5


def test_values_beyond_float16():
    with pytest.raises(ValueError, match="float16"):
        pack({"states": torch.full((1, 2), 1e5)}, "float16")
    assert unpack(pack({"states": torch.zeros(1, 2, 3)}, "int8"), torch.float32, "cpu")["states"].sum() == 0


@pytest.fixture(scope="module")
def gallery():
    arrays, model = golden.arrays("r2d2_b16"), golden.model("r2d2_b16")
    with torch.no_grad():
        mask = arrays["gal_attention_mask"]
        texts = model.get_text_features(arrays["gal_input_ids"], mask)
        images = model.get_image_features(arrays["gal_pixel_values"])
    cosine = normalize(texts.pooler_output) @ normalize(images.pooler_output).t()
    return model, RankedTexts(texts.last_hidden_state, mask.sum(dim=1)), images.last_hidden_state, cosine, arrays


@pytest.mark.parametrize("keys_values", [False, True])
@pytest.mark.parametrize("candidates", [4, 12])
@pytest.mark.parametrize("way", ["t2i", "i2t"])
def test_golden_scores(gallery, way, candidates, keys_values):
    """The authors' own scores of a gallery of 12 images and 20 texts."""
    model, texts, states, cosine, arrays = gallery
    want = arrays[f"gal_k{candidates}_score_{way}"]
    chosen = want > -100
    assert (chosen.sum(dim=1) == candidates).all()
    queries, items = chosen.nonzero(as_tuple=True)
    text_index, image_index = (queries, items) if way == "t2i" else (items, queries)
    ranker = FastRanker(model, 3)
    found = ranker.logits(texts, ranker.prepare(states, keys_values), text_index, image_index)
    golden.close(found.match_probability + cosine[text_index, image_index], want[chosen])
