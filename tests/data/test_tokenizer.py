import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcap.data import DataError
from fastcap.data.tokenizer import SPECIAL_TOKENS, CaptionTokenizer, train_word_tokenizer

CAPTIONS = [
    "A man 's t-shirt .",
    "A man's dog , 3 years old .",
    "Two dogs do n't run .",
    "two DOGS run in the snow .",
    "the o\u2019clock dog \U0001f600",
] * 5
WORD = train_word_tokenizer(CAPTIONS)
TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from([*SPECIAL_TOKENS, "dog", "\r", "\U0001f600", ".", "\u2028"])).map(" ".join),
)


def test_words_are_kept_whole_and_punctuation_is_dropped():
    for text in ("a man's t-shirt", "a man's dog 3 years old", "two dogs don't run", "the o'clock dog"):
        assert WORD.decode(WORD.encode(text)) == text
    assert WORD.encode("A MAN 's\tT-shirt !!") == WORD.encode("a man's t-shirt")
    assert WORD.encode("a zebra") == [*WORD.encode("a"), WORD.special.unk]
    assert WORD.decode(WORD.encode("a zebra")) == "a"


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_word_round_trip_is_stable(text):
    ids = WORD.encode(text)
    known = [index for index in ids if index != WORD.special.unk]
    assert not set(known) & set(WORD.special.ids)
    assert WORD.encode(WORD.decode(ids)) == known


def test_batch_equals_one_by_one():
    texts = [*CAPTIONS, "", " ", "\r", "\U0001f600", "[MASK] [PAD]"]
    assert WORD.encode_batch(texts) == [WORD.encode(text) for text in texts]
    assert WORD.encode_batch([]) == []
    assert WORD.encode("") == WORD.encode(" \r\n") == []


def test_json_and_pickle_give_it_back():
    for copy in (CaptionTokenizer.from_json(WORD.to_json()), pickle.loads(pickle.dumps(WORD))):
        assert copy.to_json() == WORD.to_json() and copy.vocab_size == WORD.vocab_size
        assert copy.encode_batch([*CAPTIONS, "[MASK]"]) == WORD.encode_batch([*CAPTIONS, "[MASK]"])


@pytest.mark.parametrize("text", ["", "{}", "null", "{", WORD.to_json().replace("[MASK]", "[HIDE]")])
def test_garbage_is_a_data_error(text):
    with pytest.raises(DataError, match="tokenizer"):
        CaptionTokenizer.from_json(text)


def test_training_depends_on_the_captions_only():
    ties = [f"w{i} x{i}" for i in range(50)]
    assert train_word_tokenizer(ties, 1).to_json() == train_word_tokenizer(ties[::-1], 1).to_json()


def test_vocabulary_limits():
    assert train_word_tokenizer(["a a b b c"], min_frequency=2).vocab_size == 5 + 2
    for captions in ([], ["", " "], ["once only"]):
        with pytest.raises(DataError, match="no word seen 5 times"):
            train_word_tokenizer(captions)
