"""How steady the predictions of a checkpoint are."""
