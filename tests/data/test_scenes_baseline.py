"""Scenes cannot be captioned blindly: what ignores the picture scores below a tenth of the oracle."""

from collections import Counter

from pycocoevalcap.cider.cider import Cider

from fastcap.data.scenes import Scenes


def test_constant_captions_score_below_a_tenth_of_the_oracle():
    scenes = Scenes(num_train=4000, num_val=300)
    train, val = scenes.split("train"), scenes.split("val")
    references = {image_id: list(texts) for image_id, texts in zip(val.image_ids, val.captions, strict=True)}

    def cider(captions):
        return Cider().compute_score(references, {image_id: [text] for image_id, text in captions.items()})[0]

    oracle = cider(val.oracle_captions)
    # All that is known without the pictures: how captions are commonly worded.
    common = [text for text, _ in Counter(t for texts in train.captions for t in texts).most_common(30)]
    constants = common + [train.captions[index][0] for index in range(30)]
    assert max(cider(dict.fromkeys(val.image_ids, text)) for text in constants) < oracle / 10
