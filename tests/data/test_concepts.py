import pytest

from fastcap.data.concepts import concept_agreement
from fastcap.data.tokenizer import train_word_tokenizer


def test_what_captions_agree_on_weighs_and_style_does_not():
    # Half of the images show a dog, in all captions; "photo" opens every other caption, whatever the image.
    captions = [
        [f"{'photo ' if caption % 2 else ''}{'dog' if image % 2 else 'sky'}" for caption in range(4)]
        for image in range(20)
    ]
    tokenizer = train_word_tokenizer([text for texts in captions for text in texts], min_frequency=1)
    weights = concept_agreement(captions, tokenizer)
    weight = {word: weights[tokenizer.concepts()[tokenizer.encode(word)[0]]] for word in ("dog", "sky", "photo")}
    assert weight["dog"] == pytest.approx(1.0) and weight["sky"] == pytest.approx(1.0)
    assert weight["photo"] == 0.0


def test_rare_concepts_and_lonely_captions_weigh_nothing():
    captions = [["a dog", "a dog"]] + [["a cat"]] * 10
    tokenizer = train_word_tokenizer([text for texts in captions for text in texts], min_frequency=1)
    assert set(concept_agreement(captions, tokenizer)) == {0.0}
