"""The fixed data set: dialogues, judgements and the rewards made from them."""
