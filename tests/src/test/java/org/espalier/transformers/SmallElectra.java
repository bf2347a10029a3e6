package org.espalier.transformers;

/** A model of the kind of ELECTRA in plain loops: its tables are narrower than its layers. */
final class SmallElectra extends SmallEncoder {
  SmallElectra() {
    super("electra", "electra.");
    settings = ", \"embedding_size\": 16";
  }

  @Override
  int rowWidth() {
    return 16;
  }

  @Override
  void addEmbeddings(SmallCheckpoint w) {
    super.addEmbeddings(w);
    w.linear("electra.embeddings_project", rowWidth(), HIDDEN, true);
  }

  @Override
  double[][] embedded(SmallCheckpoint w, int[] text) {
    return each(super.embedded(w, text), row -> w.linear("electra.embeddings_project", row));
  }
}
