package org.espalier.transformers;

/** A model of the kind of DistilBERT, whose settings have other names. */
final class SmallDistilBert extends SmallEncoder {
  SmallDistilBert() {
    super("distilbert", "distilbert.");
  }

  @Override
  String config() {
    return """
           {"model_type": "distilbert", "architectures": ["%s"], "dim": %d, "hidden_dim": %d,
            "vocab_size": %d, "n_layers": %d, "n_heads": %d, "max_position_embeddings": %d,
            "activation": "gelu", "id2label": {"0": "a", "1": "b", "2": "c"}}
           """
        .formatted(architecture, HIDDEN, INNER, WORDS, LAYERS, HEADS, PLACES);
  }
}
