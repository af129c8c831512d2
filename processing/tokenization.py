"""A small BERT tokenizer built from texts, for models trained from scratch without a vocabulary file."""

from collections import Counter
from collections.abc import Iterable

from transformers import BertTokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def build_character_tokenizer(texts: Iterable[str], max_length: int = 64, min_count: int = 1) -> BertTokenizer:
    """BertTokenizer whose vocabulary is the characters of `texts`.

    Chinese characters are tokens of their own; other scripts and digits are split into characters by the
    word-piece rule (`a`, `##b`), so every text of the same characters is covered without [UNK].

    Args:
        texts: what the vocabulary has to cover.
        max_length: `model_max_length` of the tokenizer.
        min_count: characters rarer than this become [UNK].

    Raises:
        ValueError: no text has any character.
    """
    plain = BertTokenizer(vocab={token: i for i, token in enumerate(SPECIAL_TOKENS)}).backend_tokenizer
    counts: Counter[str] = Counter()
    for text in texts:
        words = plain.pre_tokenizer.pre_tokenize_str(plain.normalizer.normalize_str(text))
        for word, _ in words:
            counts.update([word[0], *(f"##{character}" for character in word[1:])])
    tokens = sorted(token for token, count in counts.items() if count >= min_count)
    if not tokens:
        raise ValueError("no text has any character to build a vocabulary from")
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *tokens))}
    return BertTokenizer(vocab=vocabulary, model_max_length=max_length)
