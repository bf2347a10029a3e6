package org.espalier.transformers;

/** A model of the kind of MPNet in plain loops. */
final class SmallMpNet extends SmallEncoder {
  private final String table;

  SmallMpNet(String base) {
    super("mpnet", base);
    names =
        Layer.bert(
            ".attention.attn.q",
            ".attention.attn.k",
            ".attention.attn.v",
            ".attention.attn.o",
            ".attention.LayerNorm");
    settings = ", \"relative_attention_num_buckets\": 32";
    parts = 0;
    padding = 1;
    firstPlace = 2;
    table = base + "encoder.relative_attention_bias.weight";
  }

  @Override
  void addEmbeddings(SmallCheckpoint w) {
    super.addEmbeddings(w);
    w.add(table, 0, 1, 32, HEADS);
  }

  @Override
  double score(
      SmallCheckpoint w, String path, double[][] q, double[][] k, int from, int to, int head) {
    int far = Math.abs(from - to);
    int bucket = far;
    if (far >= 8) {
      bucket = Math.min(15, 8 + (int) (8 * Math.log(far / 8.0) / Math.log(128 / 8.0) + 1e-9));
    }
    if (to > from) {
      bucket += 16;
    }
    return super.score(w, path, q, k, from, to, head) + w.get(table)[bucket * HEADS + head];
  }
}
