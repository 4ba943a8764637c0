"""Classification without training, and almost without: which findings does an image show?

    zeroshot   the image against prompts of each finding (elvis.pretrained.Pretrained.classify)
    probe      frozen pooled features: a linear probe and nearest neighbours, at shares of the labels

python -m downstream.classification zeroshot|probe --help; docs/classification.md says what every number means.
"""
