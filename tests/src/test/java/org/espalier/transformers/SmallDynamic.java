package org.espalier.transformers;

/** A model of the kind of Llama whose base grows with texts of more than seven tokens. */
final class SmallDynamic extends SmallDecoder {
  private static final double FACTOR = 3;
  private static final int CONTEXT = 7;

  SmallDynamic() {
    super("llama", ", \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": " + FACTOR + "}");
  }

  @Override
  String config() {
    return super.config()
        .replace("\"max_position_embeddings\": 64", "\"max_position_embeddings\": " + CONTEXT);
  }

  @Override
  double[] angles(int n, int longest) {
    double length = Math.max(longest, CONTEXT);
    double grown = Math.pow(FACTOR * length / CONTEXT - (FACTOR - 1), WIDTH / (WIDTH - 2.0));
    return powers(10000 * grown, WIDTH);
  }
}
