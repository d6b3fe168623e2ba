import math

import pytest

from fastcap.data.concepts import agreed_phrases, concept_agreement
from fastcap.data.tokenizer import train_word_tokenizer


def test_what_captions_agree_on_weighs_and_style_does_not():
    # Half of the images show a dog, in all captions; "photo" opens every other caption, whatever the image.
    captions = [
        [f"{'photo ' if caption % 2 else ''}{'dog' if image % 2 else 'sky'}" for caption in range(4)]
        for image in range(20)
    ]
    tokenizer = train_word_tokenizer([text for texts in captions for text in texts], min_frequency=1)
    weights, idf = concept_agreement(tokenizer.encode_nested(captions), tokenizer, 5)
    place = {word: tokenizer.concepts()[tokenizer.encode(word)[0]] for word in ("dog", "sky", "photo")}
    assert weights[place["dog"]] == pytest.approx(1.0) and weights[place["sky"]] == pytest.approx(1.0)
    assert weights[place["photo"]] == 0.0
    assert [idf[place[word]] for word in ("dog", "photo")] == pytest.approx([math.log(2), 0.0])


def test_phrases_are_pairs_that_images_decide():
    # Half of the images show a red ball, in all captions; every other caption of any image says "in a photo".
    captions = [
        [f"{'red ball' if image % 2 else 'green tree'}{' in a photo' if caption % 2 else ''}" for caption in range(4)]
        for image in range(20)
    ]
    tokenizer = train_word_tokenizer([text for texts in captions for text in texts], min_frequency=1)
    encoded = tokenizer.encode_nested(captions)
    pairs, weights, idf = agreed_phrases(encoded, tokenizer, 40)
    found = {tokenizer.decode(list(pair)): weight for pair, weight in zip(pairs, weights, strict=True)}
    assert found == {"red ball": pytest.approx(1.0), "green tree": pytest.approx(1.0)}
    assert pairs == sorted(pairs) and idf == pytest.approx([math.log(2)] * 2)
    assert agreed_phrases(encoded, tokenizer, 41).pairs == []
