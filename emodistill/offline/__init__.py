"""The fixed data set: dialogues, judgements, the rewards that follow from them, and datasets."""
